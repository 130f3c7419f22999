"""Whole runs in emulated FP8: they learn as bf16 does, resume to the bit, and exchange checkpoints with it."""

import json
import math
import shutil
from pathlib import Path
from statistics import mean

import pytest
import safetensors
import torch

from yxanul.errors import ConfigError
from yxanul.tracking import read_rows
from yxanul.training import checkpoint

FP8 = ("precision=fp8", "precision.start_step=4", "precision.watch_every=3", "checkpoint.keep=100")


@pytest.fixture(autouse=True)
def bf16_units(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def rows(folder: Path, kind: str) -> list[dict]:
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == kind]


def weights(folder: Path) -> dict:
    path = checkpoint.checkpoints(folder / "checkpoints")[-1] / "model.safetensors"
    return dict(safetensors.deserialize(path.read_bytes()))


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """An FP8 run that begins in bf16 and is looked at every third step."""
    folder = tmp_path_factory.mktemp("fp8") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        status, printed = run(folder, *FP8)
    assert status == 0
    return folder, printed


def test_it_says_that_it_is_emulated(finished):
    folder, printed = finished
    assert "FP8 is emulated: it shows what FP8 does to learning, and nothing about speed" in printed
    assert "% emulated fp8" in printed
    assert result(folder)["computes"] == "emulated fp8 (tensorwise) over bf16"
    assert 0.3 < result(folder)["flops_by_format"]["fp8"] < 1
    assert {row["mfu"] for row in rows(folder, "train")} == {None}


def test_what_ran_is_recorded_when_each_phase_begins(finished):
    folder, _ = finished
    events = {row["step"]: row["message"] for row in rows(folder, "event")}
    assert events[1].startswith("precision as planned: 0 of 24")
    assert events[5].startswith("precision as planned: 24 of 24")
    looks = rows(folder, "precision")
    assert [row["step"] for row in looks] == list(range(7, result(folder)["steps"] + 1, 3))
    assert all(0 < row["blocks.0.attention.qkv/gradient/error"] < 0.5 for row in looks)


@pytest.mark.parametrize("step", [3, 6])
def test_resumed_before_or_after_fp8_begins_it_comes_to_the_same_end(finished, run, tmp_path, step):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "result.json").unlink()
    for path in checkpoint.checkpoints(folder / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    status, _ = run(folder, *FP8)
    assert status == 0 and weights(folder) == weights(finished[0])


def test_layers_that_left_fp8_stay_out_after_a_resume(run, tmp_path):
    """A bound that every layer breaks at the first look: all have left, and a restart knows."""
    strict = (*FP8, "precision.max_error=0.001")
    assert run(tmp_path / "run", *strict)[0] == 0
    assert len(result(tmp_path / "run")["left_fp8"]) == 8
    assert sum("leaves fp8" in row["message"] for row in rows(tmp_path / "run", "event")) == 8
    folder = shutil.copytree(tmp_path / "run", tmp_path / "again")
    (folder / "result.json").unlink()
    shutil.rmtree(checkpoint.checkpoints(folder / "checkpoints")[-1])
    assert run(folder, *strict)[0] == 0
    assert weights(folder) == weights(tmp_path / "run")


@pytest.mark.parametrize(("first", "then"), [("fp8", "bf16"), ("bf16", "fp8")])
def test_checkpoints_exchange_between_precisions(run, tmp_path, first, then):
    assert run(tmp_path / "first", f"precision={first}", "train.steps=4")[0] == 0
    named = checkpoint.checkpoints(tmp_path / "first" / "checkpoints")[-1]
    status, printed = run(tmp_path / "then", f"precision={then}", "train.steps=6", f"resume_from_checkpoint={named}")
    assert status == 0 and "at step 4" in printed
    assert result(tmp_path / "then")["steps"] == 6


def test_200_steps_end_within_a_hundredth_of_the_loss_of_bf16(run, tmp_path):
    """Mean training loss of the last 20 steps; the same data in the same order."""
    losses = {}
    for name in ("bf16", "fp8"):
        overrides = (f"precision={name}", "train.steps=200", "evaluate.every=1000", "checkpoint.every=1000")
        assert run(tmp_path / name, *overrides)[0] == 0
        seen = [row["loss"] for row in rows(tmp_path / name, "train")]
        assert len(seen) == 200 and mean(seen[-20:]) < 0.9 * seen[0]
        losses[name] = mean(seen[-20:])
    assert losses["fp8"] != losses["bf16"]
    assert math.isclose(losses["fp8"], losses["bf16"], rel_tol=0.01)


def test_without_fp8_units_fallback_error_stops_before_anything_is_written(run, tmp_path):
    with pytest.raises(ConfigError, match=r"precision.fallback=error: FP8 cannot run: a CPU has no FP8 units"):
        run(tmp_path / "run", "precision=fp8", "precision.fallback=error")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name != ".lock"]
