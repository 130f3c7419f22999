"""The quickstart's command in a real process: all that it promises is there, and again it changes nothing."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import yaml

from yxanul.tracking import read_rows


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_writes_what_the_design_says(undisturbed):
    _, folder, out = undisturbed
    written = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert {"config.yaml", "plan.json", "metrics.jsonl", "checkpoints", "result.json"} <= written
    assert written & {"tensorboard", "wandb"} == set()  # tracking=minimal
    result = json.loads((folder / "result.json").read_text())
    rows = read_rows(folder / "metrics.jsonl")
    trained = [row for row in rows if row["kind"] == "train"]
    assert all({"step", "loss", "tokens", "bytes", "lr", "seq_len"} <= row.keys() for row in trained)
    assert all("bits_per_byte" in row for row in rows if row["kind"] == "eval")
    assert {"bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte", "tokens", "bytes", "seconds"} <= result.keys()
    for name in ("bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte"):
        assert 0.5 < result[name] < 8
    assert (folder / result["checkpoint"] / "model.safetensors").exists()
    assert len(result["samples"]) == 1 and result["samples"][0]["text"]
    assert abs(trained[0]["loss"] - math.log(2048)) < 0.3  # nothing is known at first
    losses = [row["loss"] for row in trained]
    assert sum(losses[-5:]) / 5 < losses[0] - 0.2  # single steps of 256 tokens differ by chance
    for number in ("bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte"):
        assert f"{result[number]:.4f}" in out
    assert "sample 1:" in out


def test_what_was_counted_need_not_be_learned(train, tmp_path):
    status, out, err = train("ngram=trigram", "ngram.tokens=60000", "hydra.run.dir=run", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "n-grams in" in out
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    first = next(row for row in rows if row["kind"] == "train")
    assert first["loss"] < math.log(2048) - 1.5
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["ngrams"] > 60_000
    start = next(row for row in rows if row["kind"] == "start")
    assert start["preparation_seconds"] > 0


def test_the_paths_that_are_printed_lie_where_the_user_stands(undisturbed):
    working, folder, out = undisturbed
    for name in ("result.json", "metrics.jsonl", "plan.json", "config.yaml"):
        assert f"  {folder.relative_to(working) / name}\n" in out
    assert sorted(path.name for path in working.iterdir()) == ["outputs"]


def test_the_folder_is_named_by_the_choices(undisturbed):
    _, folder, _ = undisturbed
    assert folder.name.startswith("nano-fp32-superbpe8k-ultra-parquet-seed1-")
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["hidden_size"] == 64


def test_the_same_command_again_says_finished_and_changes_nothing(undisturbed, train):
    working, folder, _ = undisturbed
    before = contents(working)
    status, out, err = train(cwd=working)
    assert (status, err) == (0, "")
    assert "is finished" in out and str(folder.relative_to(working) / "result.json") in out
    assert contents(working) == before


def test_tensorboard_and_an_offline_wandb_are_written(train, tmp_path):
    pytest.importorskip("wandb", reason="wandb is an optional sink")
    pytest.importorskip("tensorboard", reason="tensorboard is an optional sink")
    folder = tmp_path / "run"
    status, out, _ = train("tracking=offline", "train.tokens=1500", f"hydra.run.dir={folder}", cwd=tmp_path)
    assert status == 0
    [written] = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"train/loss" in written.read_bytes()
    [events] = (folder / "tensorboard").glob("events.*")
    assert b"train/loss" in events.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert f"{Path('run') / 'tensorboard'}" in out


@pytest.mark.slow
def test_the_real_model_trains_on_real_text(train, shared, tmp_path):
    """The 197M model of the reference with its own tokenizer: one step, and a checkpoint of it."""
    folder = tmp_path / "run"
    status, _, err = train(
        "precision=bf16",
        "tokenizer=t80k",
        "curriculum=ultra",
        "data=parquet",
        f"data.path={shared / 'openstax'}",
        f"tokenizer.path={shared / 'tokenizers' / 't80k' / 'tokenizer.json'}",
        "train.steps=1",
        "curriculum.max_step_tokens=2048",
        "evaluate.bytes=20000",
        "evaluate.samples=1",
        "evaluate.sample_tokens=4",
        "tracking=minimal",
        f"hydra.run.dir={folder}",
        base=(),
        timeout=1500,
        OMP_NUM_THREADS=str(os.cpu_count()),
    )
    assert status == 0, err
    [row] = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]
    assert abs(row["loss"] - math.log(200_005)) < 0.5 and 8 <= row["tokens"] <= 2048
    result = json.loads((folder / "result.json").read_text())
    assert 196e6 < result["parameters"] < 197e6
    assert (folder / result["checkpoint"] / "model.safetensors").stat().st_size > 4 * 196e6
    assert row["memory_gb"] < 12
    shutil.rmtree(folder / "checkpoints")  # gigabytes
