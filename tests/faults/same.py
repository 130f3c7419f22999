"""Whether two finished runs are the same, bit for bit."""

import json
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError

from yxanul.tracking import read_rows

CLOCKS = {"seconds", "tokens_per_second", "bytes_per_second", "mfu", "memory_gb", "evaluation_seconds"}
RESULT = ("bits_per_byte", "perplexity", "tokens", "bytes", "steps", "skipped_steps", "samples", "checkpoint")


def difference(run: Path, other: Path, but: str = "") -> str | None:
    """The first thing in which two finished runs are not the same, clocks aside; None if they are.

    Args:
        but: what is not looked at: "record" or nothing.
    """
    readers = {"record": learned, "result": _figures, "last checkpoint": _last_tensors, "tokenizer": _tokenizer}
    try:
        wrong = next((what for what, read in readers.items() if what != but and read(run) != read(other)), None)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    left = next(run.rglob("*.tmp/"), None)
    if left:
        return f"{left.name} was left behind"
    return wrong and f"another {wrong} than undisturbed"


def rows(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """Of the record."""
    return [row for row in read_rows(run / "metrics.jsonl") if row["kind"] in kinds]


def learned(run: Path) -> list[dict[str, Any]]:
    """The rows of steps and evaluations, without clocks."""
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows(run, "train", "eval")]


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def saved(run: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def tensors(path: Path) -> list[tuple[str, str, list[int], bytes]]:
    """Name, type, shape and content of a checkpoint's tensors, in whichever of its files they are."""
    found = [each for file in path.glob("*.safetensors") for each in safetensors.deserialize(file.read_bytes())]
    return sorted((name, tensor["dtype"], tensor["shape"], bytes(tensor["data"])) for name, tensor in found)


def _figures(run: Path) -> list[Any]:
    return [result_of(run)[name] for name in RESULT]


def _last_tensors(run: Path) -> dict[str, Any]:
    return tensors(run / result_of(run)["checkpoint"])


def _tokenizer(run: Path) -> bytes:
    return (run / "tokenizer.json").read_bytes()
