"""Checkpoints: whole or not there, checked by hash, loaded without executing code.

A checkpoint is a folder `step-00000100` with the weights and the optimizer's state as safetensors, the run's
state as JSON, and `manifest.json` with the sha256 of each. It is written under another name, synced and then
renamed, so a kill or a full disk at any moment leaves the earlier ones as they were.

torch.distributed.checkpoint writes it, in the background, while training goes on from a copy in the host's memory:
each of several processes its share of the tensors into files of its own, which any other number of processes can
read.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from yxanul.errors import UserError
from yxanul.files import sha256, sync
from yxanul.training.distributed import World

STATE, MANIFEST = "state.json", "manifest.json"
PARTS = ("model", "optimizer")
"""Of the tensors; each in `<part>.safetensors`, or `<part>-<process>.safetensors` where several processes wrote it."""

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process needs none


@dataclass(frozen=True)
class TrainState:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        tokens, bytes: trained on.
        seconds: of training, over all starts of the run.
        bad_steps: steps skipped so far, and the last of them in a row.
        bad_in_a_row: likewise.
        corpus, tokenizer: fingerprints of what it was trained on.
        left_fp8: layers that went back from FP8 to the activations' dtype.
        losses: of the last steps of the stage, nats per token: what a spike is told by.
        rollbacks: returns to a checkpoint because of a spike.
        skipped_tokens: of the data, left out by them.
    """

    step: int = 0
    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    corpus: str = ""
    tokenizer: str = ""
    left_fp8: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rollbacks: int = 0
    skipped_tokens: int = 0


class Saver:
    """Writes a run's checkpoints under `folder`, one at a time, and keeps the newest `keep`.

    All processes of a run have one, and call it at the same places.
    """

    def __init__(self, folder: Path, keep: int, world: World):
        self.folder = folder
        self._keep = keep
        self._world = world
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None  # training has the other to itself
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: TrainState, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Begin to write the checkpoint of `state.step`; training may go on as soon as this returns.

        Raises:
            UserError: it, or the one before, cannot be written (a full disk, no permission); nothing that was there
                is lost.
        """
        self.wait()
        final = self.folder / f"step-{state.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        if self._world.from_first(lambda: self._begin(final, temporary)):
            writing = _begin_to_write(temporary, model, optimizers, self._world.size, self._group)
            self._pending = self._background.submit(self._complete, writing, state, temporary, final)

    def wait(self) -> None:
        """Wait until the last checkpoint is there; raises UserError as `save`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._world.from_first(pending.result)
            pending.result()

    def close(self) -> None:
        """Let what is under way end, whatever comes of it."""
        self._background.shutdown()

    def _begin(self, final: Path, temporary: Path) -> bool:
        """Make room for a checkpoint; False if there is one of that step."""
        if final.exists():
            return False
        with _disk_errors(final, temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        return True

    def _complete(self, writing: Future, state: TrainState, temporary: Path, final: Path) -> None:
        """Wait until all have written; the first then makes a checkpoint of it."""
        with _disk_errors(final, temporary):
            _result(writing)
            if not self._world.first:
                return
            (temporary / STATE).write_text(json.dumps(asdict(state), indent=2))
            hashes = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps(hashes, indent=2))
            for name in (*hashes, MANIFEST):
                sync(temporary / name)
            os.replace(temporary, final)
            sync(self.folder)
        for old in checkpoints(self.folder)[: -self._keep]:
            shutil.rmtree(old)


def _begin_to_write(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    processes: int,
    group: dist.ProcessGroup | None,
) -> Future:
    """Copy the tensors to the host's memory, and begin to write the copy."""
    import torch.distributed.checkpoint as dcp  # takes most of a second

    from yxanul.training.checkpoint_writer import CheckpointWriter

    weights, moments = model.state_dict(), _optimizer_tensors(model, optimizers)
    parts = dict.fromkeys(weights, PARTS[0]) | dict.fromkeys(moments, PARTS[1])
    writer = CheckpointWriter(folder, parts, processes)
    return dcp.async_save({**weights, **moments}, storage_writer=writer, process_group=group)


def _result(writing: Future) -> None:
    """Raise what the library says of a failure: the first process's error, or another's."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        writing.result()
    except CheckpointException as failed:
        raise next(error for error, _ in failed.failures.values()) from None


@contextmanager
def _disk_errors(final: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{final}: the checkpoint cannot be written ({error}); earlier checkpoints are intact, "
            "free some space and start again"
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def verify(checkpoint: Path) -> None:
    """Hold every file against its hash; raise UserError naming the first that does not fit."""
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text())
        damaged = next((name for name in hashes if sha256(checkpoint / name) != hashes[name]), None)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{checkpoint}: is no whole checkpoint ({error}); name another or remove it") from error
    if damaged:
        raise UserError(
            f"{checkpoint}: {damaged} is damaged (its hash does not fit); "
            "remove this folder to go on from an earlier checkpoint"
        )


def read_state(checkpoint: Path) -> TrainState:
    """Where the run stood; raises UserError if the checkpoint is not whole."""
    try:
        return TrainState(**json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{checkpoint}: is no whole checkpoint ({error}); name another or remove it") from error


def load(checkpoint: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> TrainState:
    """Verify a checkpoint and put it into the model and the optimizer, or this process's share of it into its own.

    Raises:
        UserError: it is damaged, or belongs to another model or optimizer.
    """
    weights, moments = _look(checkpoint, model)
    return _read(checkpoint, {**weights, **_make_room(checkpoint, model, optimizers, moments)})


def load_weights(checkpoint: Path, model: nn.Module) -> TrainState:
    """As `load`, for a model that is not trained on."""
    weights, _ = _look(checkpoint, model)
    return _read(checkpoint, weights)


def _look(checkpoint: Path, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """The model's weights, which the checkpoint is sure to have, and the shapes of the optimizers' state there."""
    import torch.distributed.checkpoint as dcp  # takes most of a second

    verify(checkpoint)
    try:
        found = dcp.HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
    except SafetensorError as error:  # its hash fits, but it never was one
        raise UserError(f"{checkpoint}: holds what is no safetensors file ({error}); name another") from error
    shapes = {name: tuple(tensor.size) for name, tensor in found.items()}
    weights = model.state_dict()
    _refuse_another_model(checkpoint, weights, {name: shape for name, shape in shapes.items() if "/" not in name})
    return weights, {name: shape for name, shape in shapes.items() if "/" in name}


def _read(checkpoint: Path, tensors: dict[str, Tensor]) -> TrainState:
    """Fill `tensors`, which may be shares of what is there."""
    import torch.distributed.checkpoint as dcp

    dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
    return read_state(checkpoint)


def _refuse_another_model(checkpoint: Path, weights: dict[str, Tensor], found: dict[str, tuple[int, ...]]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{checkpoint}: belongs to another model ({name} is {found.get(name)} there, "
                f"{expected.get(name)} here); compose the same model and tokenizer"
            )


def _make_room(
    checkpoint: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    shapes: dict[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """Tensors of the optimizers' state for all that a checkpoint has, sharded as their parameters are."""
    parameters, owners = dict(model.named_parameters()), _owners(optimizers)
    for key in shapes:
        kind, _, name = key.split("/")
        owner = owners[parameters[name]]
        if type(owner).__name__ != kind:
            raise UserError(
                f"{checkpoint}: was trained with another optimizer ({kind} for {name} there, "
                f"{type(owner).__name__} here); compose the same one"
            )
    tensors = {}
    for key, shape in shapes.items():
        _, quantity, name = key.split("/")
        parameter = parameters[name]
        whole = shape == tuple(parameter.shape)
        tensors[key] = torch.zeros_like(parameter) if whole else torch.zeros(shape, device=parameter.device)
        owners[parameter].state[parameter][quantity] = tensors[key]
    return tensors


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    owners = _owners(optimizers)
    return {
        f"{type(owners[parameter]).__name__}/{quantity}/{name}": tensor
        for name, parameter in model.named_parameters()
        if parameter in owners  # weights alone have none
        for quantity, tensor in owners[parameter].state[parameter].items()
    }


def _owners(
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict[Tensor, torch.optim.Optimizer]:
    return {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
