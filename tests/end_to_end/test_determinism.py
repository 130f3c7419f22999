"""The same command twice, each time from nothing: tokenizer, tokens, record and weights are the same, bit for bit."""

import json
import os
from pathlib import Path

import pytest
import safetensors
import torch

from yxanul.tracking import read_rows

CLOCKS = {"seconds", "tokens_per_second", "bytes_per_second", "mfu", "memory_gb", "evaluation_seconds"}

WITH_BF16_UNITS = """
import runpy, torch
torch.cpu.get_capabilities = lambda: {"avx512_bf16": True}
runpy.run_module("yxanul.train", run_name="__main__", alter_sys=True)
"""
"""The command on a CPU that computes bf16 in bf16, whether or not it is fast at it."""

ON_A_GPU = (
    *("hardware.device=cuda", "hardware.deterministic=true", "model.hidden_size=256", "model.num_heads=4"),
    *("model.num_kv_heads=2", "curriculum.max_step_tokens=8192", "train.tokens=200000", "hardware.micro_batch=auto"),
)


def learned(folder: Path) -> list[dict]:
    """The rows of steps and evaluations, without clocks."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] in ("train", "eval")]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def left(folder: Path) -> dict[str, object]:
    """What a run leaves: weights and optimizer state tensor by tensor, tokenizer and figures."""
    result = json.loads((folder / "result.json").read_text())
    files = (folder / result["checkpoint"]).glob("*.safetensors")
    tensors = {file.name: dict(safetensors.deserialize(file.read_bytes())) for file in files}
    figures = {name: result[name] for name in ("bits_per_byte", "tokens", "bytes", "samples")}
    return tensors | figures | {"tokenizer": (folder / "tokenizer.json").read_bytes()}


@pytest.fixture
def from_nothing(train, tmp_path):
    """Trains with a cache of its own; returns the run's folder."""

    def run(name: str, *overrides: str, **rest) -> Path:
        folder, cache = tmp_path / name, str(tmp_path / f"{name}-cache")
        status, _, err = train(*overrides, f"hydra.run.dir={folder}", YXANUL_CACHE=cache, timeout=500, **rest)
        assert status == 0, err
        return folder

    return run


def check_same(one: Path, other: Path) -> None:
    assert learned(one) == learned(other)
    ours, theirs = left(one), left(other)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert any(name.endswith(".safetensors") for name in ours)


def test_the_same_command_is_the_same_run_whatever_prepared_its_text(from_nothing, undisturbed):
    check_same(from_nothing("again", "data.workers=2", PYTHONHASHSEED="7"), undisturbed[1])
    strict = from_nothing("strict", "hardware.deterministic=true")
    check_same(strict, undisturbed[1])  # on a CPU the mode changes nothing


@pytest.mark.parametrize(("precision", "threads"), [("bf16", 2), ("fp8", 1)])
def test_the_same_precision_and_threads_twice(from_nothing, precision, threads):
    overrides = (f"precision={precision}", "hardware.peak_tflops.bf16=0.1", "train.steps=8")
    program = ("-c", WITH_BF16_UNITS)
    runs = [from_nothing(each, *overrides, program=program, OMP_NUM_THREADS=str(threads)) for each in ("one", "other")]
    check_same(*runs)
    computes = json.loads((runs[0] / "plan.json").read_text())["computes"]
    assert computes == {"fp8": "emulated fp8 (tensorwise) over bf16"}.get(precision, precision)


def test_another_number_of_threads_rounds_otherwise_at_most(from_nothing, undisturbed):
    two, again = (from_nothing(each, OMP_NUM_THREADS="2") for each in ("two", "again"))
    check_same(two, again)
    losses = [[row["loss"] for row in learned(each) if "loss" in row] for each in (two, undisturbed[1])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_told_to_gives_the_same_bits(from_nothing, precision):
    runs = [from_nothing(name, *ON_A_GPU, f"precision={precision}") for name in ("one", "other")]
    check_same(*runs)


def test_the_mode_is_on_for_the_run_that_asks_and_for_no_later_one(command, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "to be restored")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for asked in (True, False):
        assert command(f"hardware.deterministic={asked}", f"seed={int(asked)}")[0] == 0
        assert torch.are_deterministic_algorithms_enabled() is asked
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # without it torch refuses to use cuBLAS
