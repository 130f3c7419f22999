"""A run from configuration to result, in this process: finishes, resumes to the bit, and refuses what does not fit."""

import gzip
import io
import json
import lzma
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from rich.console import Console

from yxanul.composition import to_plain
from yxanul.data import documents, shards
from yxanul.errors import UserError
from yxanul.model.attention import sdpa
from yxanul.model.transformer import Transformer
from yxanul.optim.build import build_optimizers
from yxanul.precision.linear import build_precision
from yxanul.tracking import Tracker, read_rows
from yxanul.training import checkpoint
from yxanul.training.evaluation import evaluate
from yxanul.training.run import run_lock
from yxanul.training.text import read_text

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def undisturbed(run, tmp_path_factory):
    """A finished run; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    status, printed = run(folder, "checkpoint.keep=100")
    assert status == 0
    return folder, printed


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    return shutil.copytree(undisturbed[0], tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def learned(folder: Path) -> list[tuple]:
    """What the record says without clocks: the numbers that must be the same, bit for bit."""
    return [
        (
            row["kind"],
            row["step"],
            row.get("loss"),
            row["bits_per_byte"],
            row.get("grad_norm"),
            row["tokens"],
            row["bytes"],
        )
        for row in read_rows(folder / "metrics.jsonl")
        if row["kind"] in ("train", "eval")
    ]


def last_weights(folder: Path) -> dict:
    path = checkpoint.checkpoints(folder / "checkpoints")[-1] / "model.safetensors"
    return dict(safetensors.deserialize(path.read_bytes()))


def last_optimizer(folder: Path) -> dict:
    path = checkpoint.checkpoints(folder / "checkpoints")[-1] / "optimizer.safetensors"
    return dict(safetensors.deserialize(path.read_bytes()))


def go_back(folder: Path, step: int) -> None:
    """As if the run had been killed some time after the checkpoint of `step`."""
    (folder / "result.json").unlink()
    for path in checkpoint.checkpoints(folder / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


def check_same(folder: Path, other: Path) -> None:
    assert learned(folder) == learned(other)
    assert last_weights(folder) == last_weights(other)
    assert last_optimizer(folder) == last_optimizer(other)
    results = [json.loads((each / "result.json").read_text()) for each in (folder, other)]
    for result in results:
        for clock in ("seconds", "tokens_per_second"):
            assert result.pop(clock) > 0
    assert results[0] == results[1]


def refusal(run, folder: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        run(folder, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# A whole run


def test_a_finished_run_holds_what_it_should(undisturbed, compose, tiny_run):
    folder, _ = undisturbed
    config = compose(*tiny_run, "checkpoint.keep=100")
    result = json.loads((folder / "result.json").read_text())
    plan = json.loads((folder / "plan.json").read_text())
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == to_plain(config)
    assert result["steps"] == plan["steps"] == len(rows) == rows[-1]["step"] > 15
    assert result["tokens"] == plan["tokens"] == rows[-1]["tokens"]
    assert result["bytes"] == rows[-1]["bytes"]
    assert result["parameters"] == plan["parameters"]
    assert result["skipped_steps"] == 0
    assert len({row["stage"] for row in rows}) >= 5
    assert (folder / result["checkpoint"]).name == f"step-{len(rows):08d}"
    assert [len(sample["text"]) > 0 for sample in result["samples"]] == [True]
    evaluations = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in evaluations] == [*range(10, len(rows), 10), len(rows)]
    assert evaluations[-1]["bits_per_byte"] == result["bits_per_byte"]


def test_bits_per_byte_are_those_of_the_checkpoint_on_the_held_out_text(undisturbed, compose, tiny_run):
    folder, _ = undisturbed
    config = compose(*tiny_run)
    result = json.loads((folder / "result.json").read_text())
    text = read_text(config, Console(file=io.StringIO()))
    precision = build_precision(config.precision, CPU)
    model = Transformer(config.model, config.tokenizer.vocab_size, precision.linear, precision.dtype)
    checkpoint.load(folder / result["checkpoint"], model, build_optimizers(model, config.optimizer))
    score = evaluate(model, text.held_out, CPU, sdpa)
    assert (score.bits_per_byte, score.perplexity) == (result["bits_per_byte"], result["perplexity"])
    content = "".join(text.corpus.held_out(config.evaluate.bytes)).encode()
    assert result["eval_bytes"] == len(content) > 5_000
    assert result["gzip_bits_per_byte"] == 8 * len(gzip.compress(content, 9)) / len(content)
    assert result["xz_bits_per_byte"] == 8 * len(lzma.compress(content, preset=9)) / len(content)


def test_a_run_is_judged_on_the_text_that_is_named(run, tmp_path):
    """Whole, though it is shorter than the bytes that evaluation may take; what it costs is told apart."""
    text = "Only these words, of which none is read in training.\n" * 40
    (tmp_path / "judged.txt").write_text(text)
    folder = tmp_path / "run"
    run(folder, f"data.held_out_path={tmp_path / 'judged.txt'}", "evaluate.context_bytes=64")
    result = json.loads((folder / "result.json").read_text())
    assert result["eval_bytes"] == len(text)
    [start] = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "start"]
    assert start["held_out"] == result["held_out"] and start["held_out"].endswith("context 64 bytes")
    assert start["step"] == 0 and start["start_up_seconds"] > 0 and start["preparation_seconds"] > 0


def test_the_held_out_text_is_never_trained_on(compose, tiny_run):
    config = compose(*tiny_run)
    text = read_text(config, Console(file=io.StringIO()))
    parts = documents.open_source(config.data)
    trained = set(shards.training_documents(parts, config.data.held_out))
    assert trained and not trained & set(text.corpus.held_out(10**9))


def test_what_is_printed_names_what_was_written(undisturbed):
    folder, printed = undisturbed
    result = json.loads((folder / "result.json").read_text())
    for name in ("result.json", "metrics.jsonl", "plan.json", "config.yaml", result["checkpoint"]):
        assert name in printed and (folder / name).exists()
    for number in ("bits_per_byte", "gzip_bits_per_byte", "xz_bits_per_byte"):
        assert f"{result[number]:.4f}" in printed


def test_a_finished_run_says_so_and_touches_nothing(run, finished):
    before = times(finished)
    status, printed = run(finished)
    result = json.loads((finished / "result.json").read_text())
    assert status == 0 and "is finished" in printed and f"{result['bits_per_byte']:.4f}" in printed
    assert times(finished) == before


# Going on


@pytest.mark.parametrize("step", [0, 6, 21, 10**6])
def test_a_run_goes_on_from_its_newest_checkpoint_to_the_same_end(run, undisturbed, finished, step):
    steps = json.loads((finished / "result.json").read_text())["steps"]
    go_back(finished, step)
    status, printed = run(finished)
    assert status == 0
    assert (f"at step {min(step, steps)}" in printed) == (step > 0)
    check_same(finished, undisturbed[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_saves_stops_and_the_same_command_goes_on(run, undisturbed, tmp_path, monkeypatch, number):
    at = 3 + number % 5
    real = Tracker.log

    def log(self, row):
        real(self, row)
        if row["kind"] == "train" and row["step"] == at:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Tracker, "log", log)
    status, printed = run(tmp_path / "run")
    assert status == 128 + number
    assert number.name in printed and f"step {at} of" in printed
    assert not (tmp_path / "run" / "result.json").exists()
    assert checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{at:08d}"
    monkeypatch.undo()
    assert run(tmp_path / "run")[0] == 0
    check_same(tmp_path / "run", undisturbed[0])


def test_the_checkpoint_of_another_run_can_be_named(run, undisturbed, tmp_path):
    named = undisturbed[0] / "checkpoints" / "step-00000006"
    status, printed = run(tmp_path / "run", f"resume_from_checkpoint={named}")
    assert status == 0 and str(named) in printed and "at step 6" in printed
    assert learned(tmp_path / "run") == [row for row in learned(undisturbed[0]) if row[1] > 6]
    assert last_weights(tmp_path / "run") == last_weights(undisturbed[0])


def test_its_own_checkpoint_goes_before_the_named_one(run, undisturbed, finished, tmp_path):
    go_back(finished, 12)
    named = shutil.copytree(undisturbed[0] / "checkpoints" / "step-00000003", tmp_path / "step-00000003")
    _, printed = run(finished, f"resume_from_checkpoint={named}")
    assert "step-00000012" in printed and "at step 12" in printed
    assert last_weights(finished) == last_weights(undisturbed[0])


# What does not fit is refused, and everything stays as it was


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.num_layers=1", "belongs to another model"),
        ("tokenizer.vocab_size=2047", "belongs to another model|another tokenizer"),
        ("train.tokens=2000", "beyond the plan's"),
        ("data.path=none", "no such file"),
    ],
)
def test_a_named_checkpoint_that_does_not_fit_is_refused(run, undisturbed, tmp_path, override, says):
    named = undisturbed[0] / "checkpoints" / "step-00000012"
    message = refusal(run, tmp_path / "run", override, f"resume_from_checkpoint={named}")
    assert re.search(says, message)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_whose_data_has_changed_is_refused_and_left_alone(run, finished, monkeypatch):
    go_back(finished, 12)
    before = contents(finished)

    def changed(*arguments):
        text = read_text(*arguments)
        other = [replace(shard, sha256="other") for shard in text.corpus.shards]
        return replace(text, corpus=replace(text.corpus, shards=other))

    monkeypatch.setattr("yxanul.training.run.read_text", changed)
    assert "the data has changed" in refusal(run, finished)
    assert contents(finished) == before


@pytest.mark.parametrize("damage", ["flip", "truncate"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_refused_and_can_be_removed(run, undisturbed, finished, name, damage):
    go_back(finished, 12)
    newest = finished / "checkpoints" / "step-00000012"
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 4
    (newest / name).write_bytes(content if damage == "flip" else content[: len(content) // 2])
    before = contents(finished)
    message = refusal(run, finished)
    assert str(newest) in message and "remove" in message
    assert contents(finished) == before
    if name == "model.safetensors":
        shutil.rmtree(newest)
        assert run(finished)[0] == 0
        check_same(finished, undisturbed[0])


@pytest.mark.parametrize("named", ["none", "", "checkpoints"])
def test_a_named_checkpoint_that_is_none_is_refused(run, undisturbed, tmp_path, named):
    path = undisturbed[0] / named
    message = refusal(run, tmp_path / "run", f"resume_from_checkpoint={path}")
    assert message.startswith(f"{path}: is no whole checkpoint")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_named_checkpoint_on_other_data_is_a_warning(run, undisturbed, tmp_path, caplog, compose, tiny_run):
    tokenizer = read_text(compose(*tiny_run), Console(file=io.StringIO())).tokenizer.path
    named = undisturbed[0] / "checkpoints" / "step-00000021"
    folder = tmp_path / "run"
    overrides = ("data.held_out=0.2", f"tokenizer.path={tokenizer}", f"resume_from_checkpoint={named}")
    assert run(folder, *overrides)[0] == 0
    assert "was trained on other data" in caplog.text
    state = json.loads((checkpoint.checkpoints(folder / "checkpoints")[-1] / "state.json").read_text())
    assert state["corpus"] == read_text(compose(*tiny_run, *overrides), Console(file=io.StringIO())).corpus.fingerprint


def test_a_run_that_another_process_holds_is_refused(run, finished):
    go_back(finished, 12)
    before = contents(finished)
    with run_lock(finished):
        assert "another process is training this run" in refusal(run, finished)
        assert contents(finished) == before
    assert run(finished)[0] == 0


def test_a_folder_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(run, tmp_path / "file" / "run")
    assert "cannot be written" in message and "hydra.run.dir=" in message


def test_an_exploding_run_ends_with_advice_and_no_result(run, tmp_path):
    folder = tmp_path / "run"
    message = refusal(run, folder, "optimizer.lr=1e12", "train.max_bad_steps=3")
    assert "optimizer.lr" in message
    assert not (folder / "result.json").exists()
    rows = read_rows(folder / "metrics.jsonl")
    assert sum(row["kind"] == "event" and "skipped" in row["message"] for row in rows) == 3
    for path in checkpoint.checkpoints(folder / "checkpoints"):
        checkpoint.verify(path)


def test_a_full_disk_ends_the_run_and_it_goes_on_when_there_is_room(run, undisturbed, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    real, calls = safetensors.torch.save_file, []

    def save(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        return real(*arguments, **keywords)

    monkeypatch.setattr(safetensors.torch, "save_file", save)
    message = refusal(run, folder)
    assert "No space left on device" in message and "step-00000009" in message
    assert [path.name for path in checkpoint.checkpoints(folder / "checkpoints")] == ["step-00000003", "step-00000006"]
    monkeypatch.undo()
    assert run(folder)[0] == 0
    check_same(folder, undisturbed[0])


def test_a_folder_of_another_run_is_refused_and_left_alone(run, finished):
    before = contents(finished)
    with pytest.raises(UserError, match=r"optimizer\.lr=0\.5: .* holds a run with optimizer\.lr=.* hydra\.run\.dir"):
        run(finished, "checkpoint.keep=100", "optimizer.lr=0.5")
    assert contents(finished) == before


def test_a_run_killed_around_its_last_evaluation_has_it_once(run, undisturbed, finished):
    """Killed after the last checkpoint: before the evaluation's row was written, and after."""
    record = finished / "metrics.jsonl"
    whole = learned(undisturbed[0])
    for rows in (record.read_text().splitlines()[:-1], record.read_text().splitlines()):
        (finished / "result.json").unlink()
        record.write_text("\n".join(rows) + "\n")
        assert run(finished, "checkpoint.keep=100")[0] == 0
        assert learned(finished) == whole
    assert whole[-1][0] == "eval"
