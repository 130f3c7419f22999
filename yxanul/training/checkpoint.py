"""Checkpoints: whole or not there, checked by hash, loaded without executing code.

A checkpoint is a folder `step-00000100` with the weights and the optimizer's state as safetensors, the run's
state as JSON, and `manifest.json` with the sha256 of each. It is written under another name, synced and then
renamed, so a kill or a full disk at any moment leaves the earlier ones as they were.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from yxanul.errors import UserError
from yxanul.files import sync

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)


@dataclass(frozen=True)
class TrainState:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        tokens, bytes: trained on.
        seconds: of training, over all starts of the run.
        bad_steps: steps skipped so far for a non-finite loss or gradient, and the last of them in a row.
        bad_in_a_row: likewise.
        corpus, tokenizer: fingerprints of what it was trained on.
        left_fp8: layers that went back from FP8 to the activations' dtype.
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


def save(
    folder: Path,
    state: TrainState,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    keep: int,
) -> Path:
    """Write the checkpoint of `state.step` under `folder` and remove all but the newest `keep`.

    Raises:
        UserError: it cannot be written (a full disk, no permission); nothing that was there is lost.
    """
    final = folder / f"step-{state.step:08d}"
    if final.exists():
        return final
    temporary = folder / f".{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        safetensors.torch.save_file(dict(model.state_dict()), temporary / MODEL)
        safetensors.torch.save_file(_optimizer_tensors(model, optimizers), temporary / OPTIMIZER)
        (temporary / STATE).write_text(json.dumps(asdict(state), indent=2))
        hashes = {name: _sha256(temporary / name) for name in (MODEL, OPTIMIZER, STATE)}
        (temporary / MANIFEST).write_text(json.dumps(hashes, indent=2))
        for name in (*hashes, MANIFEST):
            sync(temporary / name)
        os.replace(temporary, final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{final}: the checkpoint cannot be written ({error}); earlier checkpoints are intact, "
            "free some space and start again"
        ) from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def verify(checkpoint: Path) -> None:
    """Hold every file against its hash; raise UserError naming the first that does not fit."""
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text())
        damaged = next(
            (name for name in (MODEL, OPTIMIZER, STATE) if _sha256(checkpoint / name) != hashes[name]),
            None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint}: is no whole checkpoint ({error}); name another or remove it") from error
    if damaged:
        raise UserError(
            f"{checkpoint}: {damaged} is damaged (its hash does not fit); "
            "remove this folder to go on from an earlier checkpoint"
        )


def load(
    checkpoint: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    device: torch.device,
) -> TrainState:
    """Verify a checkpoint and put it into the model and the optimizer.

    Raises:
        UserError: it is damaged, or belongs to another model or optimizer.
    """
    verify(checkpoint)
    weights = safetensors.torch.load_file(checkpoint / MODEL, device=str(device))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{checkpoint}: belongs to another model ({name} is {found.get(name)} there, "
                f"{expected.get(name)} here); compose the same model and tokenizer"
            )
    model.load_state_dict(weights)
    parameters, owners = dict(model.named_parameters()), _owners(optimizers)
    for key, tensor in safetensors.torch.load_file(checkpoint / OPTIMIZER, device=str(device)).items():
        kind, quantity, name = key.split("/")
        owner = owners[parameters[name]]
        if type(owner).__name__ != kind:
            raise UserError(
                f"{checkpoint}: was trained with another optimizer ({kind} for {name} there, "
                f"{type(owner).__name__} here); compose the same one"
            )
        owner.state[parameters[name]][quantity] = tensor
    return TrainState(**json.loads((checkpoint / STATE).read_text()))


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    owners = _owners(optimizers)
    return {
        f"{type(owners[parameter]).__name__}/{quantity}/{name}": tensor
        for name, parameter in model.named_parameters()
        for quantity, tensor in owners[parameter].state[parameter].items()
    }


def _owners(
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict[torch.Tensor, torch.optim.Optimizer]:
    return {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
