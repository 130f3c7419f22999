"""A tiny run that faults are tried on: how its processes are started, and what becomes of it undisturbed."""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .same import difference, step_of

ROOT = Path(__file__).resolve().parents[2]
INJECT = Path(__file__).with_name("inject.py")
PATIENCE = 300.0  # seconds for one process; on a busy machine it may take its time
MODULES = ("argparse", "datetime", "inspect", "typing")
TINY = (
    "experiment=quickstart",
    "precision=fp32",
    "data=parquet",
    "data.held_out=0.1",
    "tokenizer.vocab_size=512",
    "tokenizer.transition=384",
    "tokenizer.train_bytes=100000",
    "model.hidden_size=64",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.intermediate_size=128",
    "model.max_seq_len=128",
    "curriculum.max_seq_len=128",
    "curriculum.max_step_tokens=256",
    "hardware=cpu",
    "hardware.peak_tflops.fp32=0.1",
    "hardware.micro_batch.128=1",
    "train.tokens=6000",
    "checkpoint.every=3",
    "checkpoint.keep=2",
    "evaluate.every=10",
    "evaluate.bytes=10000",
    "evaluate.samples=1",
    "evaluate.sample_tokens=8",
    "tracking=minimal",
)
"""A run of a second: two dozen steps over most stages, an evaluation on the way, a checkpoint every few steps."""

STEP = ("yxanul.training.loop:add_gradient", "yxanul.training.loop:update", "yxanul.tracking:Record.append")
EVALUATION = ("yxanul.training.loop:Trainer.evaluate", "yxanul.model.transformer:Transformer.token_losses")
SAVE = ("yxanul.training.checkpoint:Saver.save", "safetensors.torch:save_file")
"""Functions that a process comes by in the phases of its life."""

Injection = tuple[str, dict[str, Any]]
"""Of `inject.py`: a name and its arguments."""


@dataclass(frozen=True)
class Ended:
    """How a process ended; `seconds` by the wall."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def told(self) -> bool:
        """Whether it stopped with one line for its user."""
        return self.status == 1 and self.err.startswith("error: ") and self.err.count("\n") == 1

    @property
    def last_words(self) -> str:
        return f"status {self.status} after {self.seconds:.0f} s: {self.err.strip()[-500:] or 'not a word'}"


def wait(process: subprocess.Popen, patience: float = PATIENCE) -> Ended:
    """The end of a process that was just started; it is killed if that does not come in `patience` seconds."""
    began = time.perf_counter()
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return Ended(process.returncode, out, err, time.perf_counter() - began)


class Bench:
    """Where trials take place: the text of the tiny run, its cache, and what becomes of it undisturbed.

    Args:
        folder: for all of that; it is there and empty.
    """

    def __init__(self, folder: Path):
        self.folder, self.text, self._cache = folder, folder / "text", folder / "cache"
        self.text.mkdir()
        for name in MODULES:
            content = (Path(argparse.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
            pieces = [content[start : start + 2000] for start in range(0, len(content), 2000)]
            (self.text / f"{name}.txt").write_text("\n<|endoftext|>\n".join(pieces), encoding="utf-8")

    def start(
        self, run: Path, *overrides: str, inject: Sequence[Injection] = (), cache: Path | None = None, **environ: str
    ) -> subprocess.Popen:
        """Start to train in `run`; `environ` is added to the environment."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        ours = {"PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "0", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        program = ["-P", str(INJECT), json.dumps(inject)] if inject else ["-m", "yxanul.train"]
        return subprocess.Popen(
            [sys.executable, *program, *TINY, f"data.path={self.text}", f"hydra.run.dir={run}", *overrides],
            cwd=self.folder,
            env=inherited | ours | {"YXANUL_CACHE": str(cache or self._cache)} | environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def train(self, run: Path, *overrides: str, patience: float = PATIENCE, **rest: Any) -> Ended:
        """As `start`, and wait."""
        return wait(self.start(run, *overrides, **rest), patience)

    def train_pair(self, run: Path, *overrides: str, inject: dict[int, Sequence[Injection]]) -> list[Ended]:
        """Train by two processes; `inject` says what into which rank."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes = [
            self.start(run, *overrides, inject=inject.get(rank, ()), RANK=str(rank), LOCAL_RANK=str(rank), **world)
            for rank in range(2)
        ]
        return [wait(process) for process in processes]

    @cached_property
    def undisturbed(self) -> Path:
        """The folder of a run that nobody disturbed, with all its checkpoints."""
        folder = self.folder / "undisturbed"
        _finished(self.train(folder, "checkpoint.keep=100"))
        return folder

    @property
    def cache(self) -> Path:
        """What runs have in common: the tokenizer and the tokens that the undisturbed one made."""
        assert self.undisturbed.exists()
        return self._cache

    @cached_property
    def undisturbed_pair(self) -> Path:
        """As `undisturbed`, of two processes: their sums are rounded otherwise than those of one."""
        folder = self.folder / "undisturbed_pair"
        for ended in self.train_pair(folder, inject={}):
            _finished(ended)
        return folder

    @cached_property
    def saved(self) -> list[int]:
        """The steps of the undisturbed run's checkpoints, ascending."""
        return sorted(map(step_of, (self.undisturbed / "checkpoints").iterdir()))

    @property
    def life(self) -> float:
        """Seconds of a process that begins with an empty cache and ends with a result."""
        return self._life[1].seconds

    def count(self, place: str) -> int:
        """How often such a process comes by a function, or by a file operation in its "run" or its "cache"."""
        return self._life[0][place]

    @cached_property
    def _life(self) -> tuple[dict[str, int], Ended]:
        folder, cache, counts = (self.folder / name for name in ("counted", "counted_cache", "counts.json"))
        places = {"run": {"below": str(folder)}, "cache": {"below": str(cache)}}
        functions = {name: {"function": name} for name in (*STEP, *EVALUATION, *SAVE)}
        counting = ("count", {"places": places | functions, "file": str(counts)})
        ended = _finished(self.train(folder, inject=[counting], cache=cache))
        wrong = difference(folder, self.undisturbed)
        if wrong:
            raise RuntimeError(f"two runs that nobody disturbed are not the same: {wrong}")
        return json.loads(counts.read_text()), ended

    def unfinished(self, run: Path, step: int) -> None:
        """Put a copy of the undisturbed run there, as if it had been killed some time after the checkpoint of `step`.

        It has the one before too, as a run has that keeps two.
        """
        shutil.copytree(self.undisturbed, run)
        (run / "result.json").unlink()
        kept = [each for each in self.saved if each <= step][-2:]
        for path in (run / "checkpoints").iterdir():
            if step_of(path) not in kept:
                shutil.rmtree(path)


def _finished(ended: Ended) -> Ended:
    if ended.status:
        raise RuntimeError(f"a run that nobody disturbed ends with {ended.last_words}")
    return ended
