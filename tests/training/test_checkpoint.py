"""Checkpoints: exact to the bit, whole or not there, and nothing damaged is ever loaded."""

import errno
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from yxanul.config import MuonConfig, OptimizerConfig
from yxanul.errors import UserError
from yxanul.model.attention import sdpa
from yxanul.model.transformer import Packed
from yxanul.optim.build import build_optimizers
from yxanul.training import checkpoint
from yxanul.training.checkpoint import MANIFEST, STATE, Saver, TrainState
from yxanul.training.distributed import ALONE

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
FILES = (MODEL, OPTIMIZER, STATE, MANIFEST)
ADAMW = OptimizerConfig(lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, muon=None)
MUON = OptimizerConfig(
    lr=0.01,
    weight_decay=0.1,
    betas=(0.9, 0.95),
    eps=1e-8,
    muon=MuonConfig(lr=0.02, momentum=0.95, weight_decay=0.01, iterations=5),
)


@pytest.fixture(scope="module")
def setup(build_model, model_config):
    """Makes a model and its optimizers."""

    def make(optimizer: OptimizerConfig = ADAMW, seed: int = 0, vocab_size: int = 61, **changes):
        model = build_model(model_config(**changes), vocab_size=vocab_size, seed=seed)
        return model, build_optimizers(model, optimizer)

    return make


def train(model, optimizers, first: int, last: int) -> None:
    """Steps [first, last): batch and learning rate depend on the step alone."""
    for step in range(first, last):
        tokens = torch.randint(0, 61, (33,), generator=torch.Generator().manual_seed(step))
        packed = Packed(tokens[:-1], torch.arange(32) % 16, sdpa([0, 16], 32, 16))
        model.zero_grad()
        (model(packed, tokens[1:]) / 32).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1) * group["lr_scale"]
            optimizer.step()


def save(folder: Path, state: TrainState, model, optimizers, keep: int) -> Path:
    """The checkpoint of a state, written to its end."""
    saver = Saver(folder, keep, ALONE)
    try:
        saver.save(state, model, optimizers)
        saver.wait()
    finally:
        saver.close()
    return folder / f"step-{state.step:08d}"


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Round trips


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])
def test_going_on_is_never_having_stopped(setup, tmp_path, optimizer):
    model, optimizers = setup(optimizer)
    train(model, optimizers, 0, 3)
    state = TrainState(3, 96, 412, 1.25, bad_steps=2, bad_in_a_row=1, corpus="c", tokenizer="t")
    path = save(tmp_path, state, model, optimizers, keep=1)
    train(model, optimizers, 3, 6)

    other, its_optimizers = setup(optimizer, seed=99)
    assert not same(weights(other), weights(model))
    assert checkpoint.load(path, other, its_optimizers) == state
    train(other, its_optimizers, 3, 6)

    assert same(weights(other), weights(model))
    again = [checkpoint._optimizer_tensors(*pair) for pair in ((model, optimizers), (other, its_optimizers))]
    assert same(*again) and len(again[0]) > 20


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])
def test_a_checkpoint_before_the_first_good_step_has_no_optimizer_state(setup, tmp_path, optimizer):
    model, optimizers = setup(optimizer)
    path = save(tmp_path, TrainState(1, bad_steps=1), model, optimizers, keep=1)
    other, its_optimizers = setup(optimizer, seed=1)
    checkpoint.load(path, other, its_optimizers)
    for pair in ((model, optimizers), (other, its_optimizers)):
        train(*pair, 0, 2)
    assert same(weights(model), weights(other))


def test_nothing_in_a_checkpoint_can_execute(setup, tmp_path, monkeypatch):
    model, optimizers = setup()
    train(model, optimizers, 0, 1)
    path = save(tmp_path, TrainState(1), model, optimizers, keep=1)
    assert sorted(file.name for file in path.rglob("*")) == sorted(FILES)
    for name in (MODEL, OPTIMIZER):
        with safetensors.safe_open(path / name, framework="numpy") as file:
            assert len(list(file.keys())) > 10
    for name in (STATE, MANIFEST):
        assert isinstance(json.loads((path / name).read_text()), dict)

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for module in (torch, pickle):
        monkeypatch.setattr(module, "load", refuse)
    for name in ("loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    checkpoint.load(path, *setup())


def test_the_weights_are_an_ordinary_safetensors_file(setup, tmp_path):
    model, optimizers = setup()
    path = save(tmp_path, TrainState(1), model, optimizers, keep=1)
    assert same(safetensors.torch.load_file(path / MODEL), weights(model))


# Which are kept


@pytest.mark.parametrize("keep", [1, 2, 3, 10])
def test_the_newest_are_kept(setup, tmp_path, keep):
    model, optimizers = setup()
    steps = [2, 5, 90, 100, 101]
    for step in steps:
        assert save(tmp_path, TrainState(step), model, optimizers, keep) == tmp_path / f"step-{step:08d}"
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [f"step-{step:08d}" for step in steps[-keep:]]
    assert sorted(os.listdir(tmp_path)) == [f"step-{step:08d}" for step in steps[-keep:]]


def test_checkpoints_are_ordered_by_step_and_nothing_else_is_one(tmp_path):
    assert checkpoint.checkpoints(tmp_path / "none") == []
    for name in (
        "step-100000000",
        "step-99999999",
        "step-00000007",
        ".step-00000009.tmp",
        "step-7",
        "step-0000000x",
        "x",
    ):
        (tmp_path / name).mkdir()
    found = [path.name for path in checkpoint.checkpoints(tmp_path)]
    assert found == ["step-00000007", "step-99999999", "step-100000000"]


def test_a_step_that_is_saved_is_not_written_again(setup, tmp_path):
    model, optimizers = setup()
    path = save(tmp_path, TrainState(1), model, optimizers, keep=1)
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    train(model, optimizers, 0, 1)
    assert save(tmp_path, TrainState(1), model, optimizers, keep=1) == path
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before


# Damage


@pytest.fixture(scope="module")
def two(setup, tmp_path_factory) -> Path:
    """A folder of two checkpoints; tests damage copies of it."""
    folder = tmp_path_factory.mktemp("two")
    model, optimizers = setup()
    for step in (1, 2):
        train(model, optimizers, step - 1, step)
        save(folder, TrainState(step), model, optimizers, keep=2)
    return folder


def refused(path: Path, model, optimizers) -> str:
    before = weights(model)
    with pytest.raises(UserError) as error:
        checkpoint.load(path, model, optimizers)
    assert same(weights(model), before)
    assert not any(optimizer.state for optimizer in optimizers)
    assert one_line(error).startswith(f"{path}: ")
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["delete", "empty", "shorten", "lengthen", "zeros", "folder"])
def test_a_damaged_file_is_refused_and_the_others_are_intact(setup, two, tmp_path, name, damage):
    folder = shutil.copytree(two, tmp_path / "checkpoints")
    earlier, bad = checkpoint.checkpoints(folder)
    content = (bad / name).read_bytes()
    (bad / name).unlink()
    if damage == "folder":
        (bad / name).mkdir()
    elif damage != "delete":
        changed = {"empty": b"", "shorten": content[:-1], "lengthen": content + b"\0", "zeros": bytes(len(content))}
        (bad / name).write_bytes(changed[damage])
    before = contents(folder)
    message = refused(bad, *setup(seed=1))
    assert "remove" in message
    assert contents(folder) == before
    assert checkpoint.load(earlier, *setup(seed=1)).step == 1


@settings(max_examples=60)
@given(name=st.sampled_from([MODEL, OPTIMIZER, STATE]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_single_bit_is_noticed(setup, two, tmp_path_factory, name, place, bit):
    bad = shutil.copytree(two / "step-00000002", tmp_path_factory.mktemp("bit") / "step-00000002")
    content = bytearray((bad / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (bad / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        checkpoint.verify(bad)


def test_a_single_bit_of_the_manifest_is_noticed(two, tmp_path):
    """It is the one file without a hash of its own."""
    bad = shutil.copytree(two / "step-00000002", tmp_path / "step-00000002")
    content = (bad / MANIFEST).read_bytes()
    real = checkpoint.sha256
    hashes = {name: real(bad / name) for name in FILES}
    with pytest.MonkeyPatch.context() as patch:  # the others do not change
        patch.setattr(checkpoint, "sha256", lambda path: hashes[path.name] if path.name in hashes else real(path))
        for place in range(0, 8 * len(content), 7):
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
            (bad / MANIFEST).write_bytes(damaged)
            with pytest.raises(UserError) as error:
                checkpoint.verify(bad)
            one_line(error)


def test_a_missing_checkpoint_is_named(setup, tmp_path):
    assert MANIFEST in refused(tmp_path / "step-00000001", *setup())


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"num_layers": 1},
        {"num_layers": 3},
        {"intermediate_size": 64},
        {"embedding_rank": 8},
        {"tied": False},
        {"vocab_size": 300},
        {"num_kv_heads": 4},
    ],
    ids=str,
)
def test_another_model_is_refused(setup, two, changes):
    message = refused(two / "step-00000002", *setup(**changes))
    assert "belongs to another model" in message and "there" in message and "here" in message


@pytest.mark.parametrize(("saved", "here"), [(ADAMW, MUON), (MUON, ADAMW)], ids=["adamw to muon", "muon to adamw"])
def test_another_optimizer_is_refused(setup, tmp_path, saved, here):
    model, optimizers = setup(saved)
    train(model, optimizers, 0, 1)
    path = save(tmp_path, TrainState(1), model, optimizers, keep=1)
    with pytest.raises(UserError, match=r"another optimizer.*AdamW.*Muon|another optimizer.*Muon.*AdamW") as error:
        checkpoint.load(path, *setup(here))
    one_line(error)


# A disk that fails


def failing(real, fails_at: int, error: Exception):
    calls = iter(range(1, 100))

    def call(*arguments, **keywords):
        if next(calls) == fails_at:
            raise error
        return real(*arguments, **keywords)

    return call


DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name", "fails_at", "error"),
    [
        (safetensors.torch, "save_file", 1, DISK_FULL),
        (safetensors.torch, "save_file", 2, DISK_FULL),
        (safetensors.torch, "save_file", 2, SafetensorError("I/O error: No space left on device (os error 28)")),
        (Path, "write_text", 1, DISK_FULL),
        (Path, "write_text", 2, DISK_FULL),
        (os, "fsync", 1, OSError(errno.EIO, "Input/output error")),
        (os, "replace", 1, DISK_FULL),
        (Path, "mkdir", 1, PermissionError(errno.EACCES, "Permission denied")),
    ],
)
def test_a_failing_write_leaves_the_earlier_checkpoints(setup, tmp_path, monkeypatch, module, name, fails_at, error):
    folder = tmp_path / "checkpoints"
    model, optimizers = setup()
    train(model, optimizers, 0, 1)
    save(folder, TrainState(1), model, optimizers, keep=1)
    before = contents(folder)
    monkeypatch.setattr(module, name, failing(getattr(module, name), fails_at, error))
    with pytest.raises(UserError) as raised:
        save(folder, TrainState(2), model, optimizers, keep=1)
    monkeypatch.undo()
    message = one_line(raised)
    assert message.startswith(f"{folder / 'step-00000002'}: ") and "cannot be written" in message
    assert contents(folder) == before
    assert os.listdir(folder) == ["step-00000001"]
    checkpoint.verify(folder / "step-00000001")
    save(folder, TrainState(2), model, optimizers, keep=1)
    assert os.listdir(folder) == ["step-00000002"]


def test_what_a_kill_left_behind_is_no_hindrance(setup, tmp_path):
    model, optimizers = setup()
    left = tmp_path / ".step-00000001.tmp"
    (left / "folder").mkdir(parents=True)
    (left / MODEL).write_bytes(b"half")
    path = save(tmp_path, TrainState(1), model, optimizers, keep=1)
    checkpoint.verify(path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KiB: room for two checkpoints of the test's model, not for three."""
    mount = tmp_path / "disk"
    mount.mkdir()
    try:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", mount], capture_output=True, text=True
        )
    except FileNotFoundError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_disk_that_is_really_full(setup, small_disk):
    model, optimizers = setup()
    train(model, optimizers, 0, 1)
    saved = []

    def fill():
        for step in range(1, 10):
            saved.append(save(small_disk, TrainState(step), model, optimizers, keep=10))

    with pytest.raises(UserError, match="cannot be written") as error:
        fill()
    one_line(error)
    assert "os error 28" in str(error.value) or "No space left" in str(error.value)
    assert 1 <= len(saved) < 9
    assert sorted(os.listdir(small_disk)) == [path.name for path in saved]
    for path in saved:
        checkpoint.verify(path)
    other = setup(seed=1)
    assert checkpoint.load(saved[-1], *other).step == len(saved)
    assert same(weights(other[0]), weights(model))


def test_the_state_is_readable_by_people(setup, tmp_path):
    path = save(tmp_path, TrainState(3, tokens=96), *setup(), keep=1)
    state = json.loads((path / STATE).read_text())
    assert state["step"] == 3 and state["tokens"] == 96
