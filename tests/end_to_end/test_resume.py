"""Killed at any moment and started again with the same command, a run ends as if it had been left alone."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import safetensors

from yxanul.tracking import read_rows
from yxanul.training import checkpoint

KILLER = """
import os, runpy, signal, sys
from pathlib import Path
import safetensors.torch
from yxanul.data import shards
from yxanul.tokenizer import load
from yxanul.tracking import Record, read_rows
from yxanul.training import checkpoint, result

folder = Path(sys.argv[-1].partition("=")[2])
for each in sys.argv.pop(1).split(","):
    child = os.fork()  # a process of its own, that need not import everything again
    if not child:
        break
    ended = os.waitpid(child, 0)[1]
    steps = [row["step"] for row in read_rows(folder / "metrics.jsonl")] if (folder / "metrics.jsonl").exists() else []
    print(each, ended, (folder / "result.json").exists(), max(steps, default=0), file=sys.stderr)
else:
    sys.exit()

point, number = each.split(":")
left = int(number)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(module, name, before=False):
    real = getattr(module, name)
    def call(*arguments, **keywords):
        global left
        left -= 1
        if left == 0 and before:
            die()
        result = real(*arguments, **keywords)
        if left == 0:
            die()
        return result
    setattr(module, name, call)

if point == "tokenizer":  # trained, and not yet kept
    kill_at(load, "atomic_path", before=True)
elif point == "shard":  # one shard is whole, the next is being written
    kill_at(shards.parquet, "write_table", before=True)
elif point == "row":  # a step is in the record, its checkpoint is not
    kill_at(Record, "append")
elif point == "weights":  # one file of the checkpoint is whole, the other not there yet
    kill_at(safetensors.torch, "save_file", before=True)
elif point == "renamed":  # the checkpoint is there, old ones are not yet removed
    kill_at(checkpoint.os, "replace")
elif point == "evaluated":  # everything is done but the result
    kill_at(result, "write_json", before=True)
else:
    sys.exit(f"no such point: {point}")
sys.argv[0] = "yxanul.train"
runpy.run_module("yxanul.train", run_name="__main__", alter_sys=True)
"""
"""The command, once for each point, where it is killed; says each time how it ended and what it left."""


def learned(folder: Path) -> list[tuple]:
    return [
        (row["kind"], row["step"], row["stage"], row["loss"], row["grad_norm"])
        if row["kind"] == "train"
        else (row["kind"], row["step"], row["bits_per_byte"])
        for row in read_rows(folder / "metrics.jsonl")
        if row["kind"] in ("train", "eval")
    ]


def tensors(path: Path) -> dict:
    return dict(safetensors.deserialize(path.read_bytes()))


def check_same(folder: Path, other: Path) -> None:
    assert learned(folder) == learned(other)
    results = [json.loads((each / "result.json").read_text()) for each in (folder, other)]
    for name in ("bits_per_byte", "tokens", "bytes", "samples", "checkpoint"):
        assert results[0][name] == results[1][name]
    for name in ("model.safetensors", "optimizer.safetensors"):
        paths = [each / results[0]["checkpoint"] / name for each in (folder, other)]
        assert tensors(paths[0]) == tensors(paths[1])


def stages(folder: Path) -> dict[int, int]:
    return {row["step"]: row["stage"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"}


def test_killed_inside_every_part_of_a_run(train, undisturbed, tmp_path):
    """SIGKILL while the tokenizer, a shard, a step, a checkpoint and the result are made, in a chain."""
    folder = tmp_path / "run"
    stage = stages(undisturbed[1])
    change = next(step for step in sorted(stage) if step > 3 and stage[step] != stage[step + 1])
    row = 1 + change  # the first says that the run starts
    points = ["tokenizer:1", "shard:3", f"row:{row}", "weights:2", "renamed:3", "evaluated:1"]
    cache = str(tmp_path / "cache")
    status, _, err = train(f"hydra.run.dir={folder}", program=("-c", KILLER, ",".join(points)), YXANUL_CACHE=cache)
    said = [line.split() for line in err.splitlines()]
    assert [words[:3] for words in said] == [[point, str(int(signal.SIGKILL)), "False"] for point in points], err
    reached = [int(words[3]) for words in said]
    assert reached[2] == change  # killed between two stages
    assert reached[-1] == len(stage) > max(reached[:-1])
    status, _, err = train(f"hydra.run.dir={folder}", YXANUL_CACHE=cache)
    assert (status, err) == (0, "")
    check_same(folder, undisturbed[1])
    assert not [path for path in tmp_path.rglob("*.tmp") if path.is_dir()]


def test_signals_from_outside_at_any_moment(start, train, wait_for, undisturbed, tmp_path):
    """The plain command: killed wherever it happens to be, then asked to stop while another tries to join in."""
    folder = tmp_path / "run"
    record = folder / "metrics.jsonl"
    overrides = (f"hydra.run.dir={folder}", "checkpoint.every=1")
    killed = start(*overrides)
    wait_for(lambda: record.exists() and record.read_bytes().count(b"\n") >= 4, killed)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    reached = max(stages(folder))

    first = start(*overrides)
    try:
        wait_for(lambda: max(stages(folder), default=0) >= reached + 2, first)
        first.send_signal(signal.SIGSTOP)  # so that it holds the run for as long as the second needs
        before = record.read_bytes()
        status, _, err = train(*overrides)
        assert status == 1
        assert err.count("\n") == 1 and err.startswith("error: ") and "another process" in err
        assert record.read_bytes() == before
        first.send_signal(signal.SIGTERM)
        first.send_signal(signal.SIGCONT)
        out, err = first.communicate(timeout=60)
    finally:
        first.kill()
    assert (first.returncode, err) == (128 + signal.SIGTERM, "")
    assert "stopped by SIGTERM at step" in out
    newest = max((folder / "checkpoints").glob("step-*"))
    assert int(newest.name.removeprefix("step-")) == max(stages(folder))
    assert not (folder / "result.json").exists()
    status, out, _ = train(*overrides)
    assert status == 0 and f"resuming from {newest}" in out
    check_same(folder, undisturbed[1])


def test_another_run_goes_on_from_a_named_checkpoint(command, undisturbed, tmp_path):
    named = min((undisturbed[1] / "checkpoints").glob("step-*"))
    step = int(named.name.removeprefix("step-"))
    copy = shutil.copytree(named, tmp_path / "elsewhere" / named.name)
    status, out, err = command(f"resume_from_checkpoint={copy}")
    assert (status, err) == (0, "")
    assert f"at step {step}" in out
    [folder] = (tmp_path / "outputs").iterdir()
    assert folder.name != undisturbed[1].name  # it is another run
    assert learned(folder) == [row for row in learned(undisturbed[1]) if row[1] > step]
    assert step < max(stages(folder))
    name = json.loads((folder / "result.json").read_text())["checkpoint"]
    weights = [tensors(each / name / "model.safetensors") for each in (folder, undisturbed[1])]
    assert weights[0] == weights[1]


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a run and few of its checkpoints."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(mount)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes of a disk free."""
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - leave)))
    return filler


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step(train, small_disk):
    fill(small_disk, leave=1_000_000)
    status, _, err = train(f"hydra.run.dir={small_disk / 'run'}")
    assert status == 1
    assert err.count("\n") == 1 and "3 checkpoints take up to" in err and "make room there" in err
    assert not (small_disk / "run" / "config.yaml").exists()


def test_a_disk_that_fills_is_one_line_and_harms_no_earlier_checkpoint(start, train, wait_for, undisturbed, small_disk):
    folder = small_disk / "run"
    process = start(f"hydra.run.dir={folder}")
    try:
        wait_for((folder / "checkpoints" / "step-00000006").exists, process)
        process.send_signal(signal.SIGSTOP)
        filler = fill(small_disk, leave=100_000)
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert err.count("\n") == 1 and "the checkpoint cannot be written" in err and "free some space" in err
    assert len(list((folder / "checkpoints").iterdir())) >= 2
    for path in (folder / "checkpoints").iterdir():
        checkpoint.verify(path)
    filler.unlink()
    assert train(f"hydra.run.dir={folder}")[0] == 0
    check_same(folder, undisturbed[1])
