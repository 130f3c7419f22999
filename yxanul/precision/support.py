"""Which FP8 can be had: backend and recipe for a device, and in words why not.

The limits are the libraries' own, by GPU generation. A GPU that is not here is planned for by its compute
capability, and is taken to have a CUDA that is new enough.
"""

import importlib
from dataclasses import dataclass
from functools import cache

import torch

from yxanul.config import Backend, Fallback, PrecisionConfig, Recipe
from yxanul.errors import ConfigError

FP8_UNITS = 8.9
BLOCKS_CUDA = (12, 9)


@dataclass(frozen=True)
class Machine:
    """What FP8 depends on.

    Attributes:
        kind: "cpu" or "cuda".
        capability: the GPU's compute capability, None on a CPU.
        here: whether it can be asked; otherwise it is planned for.
        cuda: version of the CUDA that torch was built with, None on a CPU build.
    """

    kind: str
    capability: float | None = None
    here: bool = True
    cuda: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Choice:
    """The FP8 of a run."""

    backend: Backend
    recipe: Recipe

    def __str__(self) -> str:
        emulated = "emulated " if self.backend is Backend.emulated else ""
        by = "" if emulated else f" by {NAMES[self.backend]}"
        return f"{emulated}fp8 ({self.recipe.value}){by}"


NAMES = {
    Backend.te: "Transformer Engine",
    Backend.scaled_mm: "torch's scaled_mm",
    Backend.emulated: "emulation",
}

RECIPES = {
    Backend.te: (Recipe.delayed, Recipe.tensorwise, Recipe.blockwise, Recipe.mxfp8),
    Backend.scaled_mm: (Recipe.tensorwise, Recipe.rowwise, Recipe.blockwise),
    Backend.emulated: (Recipe.tensorwise, Recipe.rowwise, Recipe.blockwise, Recipe.mxfp8),
}
"""Of each backend, those that exist for it."""


def machine(device: torch.device, capability: float | None = None) -> Machine:
    """The device as FP8 sees it; `capability` stands for a GPU that is not here."""
    if device.type != "cuda":
        return Machine("cpu")
    if not torch.cuda.is_available():
        return Machine("cuda", capability, here=False)
    major, minor = torch.cuda.get_device_capability(device)
    cuda = torch.version.cuda
    return Machine("cuda", major + minor / 10, cuda=tuple(map(int, cuda.split("."))) if cuda else None)


def why_not(backend: Backend, recipe: Recipe, machine: Machine) -> str | None:
    """Why this FP8 cannot run there, in words; None if it can."""
    if recipe not in RECIPES[backend]:
        return f"{NAMES[backend]} has no {recipe.value} recipe"
    if backend is Backend.emulated:
        return None
    lacking = _lacking_units(machine) or _lacking_for(recipe, machine)
    if lacking is None and backend is Backend.te and machine.here:
        return transformer_engine_missing()
    return lacking


def _lacking_units(machine: Machine) -> str | None:
    if machine.kind == "cpu":
        return f"a CPU has no FP8 units (they come with a GPU of compute capability {FP8_UNITS})"
    if machine.capability is None:
        return "the GPU's compute capability is not known (hardware.compute_capability)"
    if machine.capability < FP8_UNITS:
        return f"compute capability {machine.capability} has no FP8 units ({FP8_UNITS} has)"
    return None


def _lacking_for(recipe: Recipe, machine: Machine) -> str | None:
    if recipe is Recipe.blockwise:
        if not 9 <= machine.capability < 10:
            return f"block-wise products need compute capability 9.0, and this is {machine.capability}"
        if machine.here and (machine.cuda or (0,)) < BLOCKS_CUDA:
            return f"block-wise products need CUDA {'.'.join(map(str, BLOCKS_CUDA))}"
    if recipe is Recipe.mxfp8 and not 10 <= machine.capability < 12:
        return f"MXFP8 needs compute capability 10.0 to 11.x, and this is {machine.capability}"
    return None


@cache
def transformer_engine_missing() -> str | None:
    """Why Transformer Engine cannot be used, None if it can; it fails to import in many ways, and each is told."""
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # FileNotFoundError, OSError, RuntimeError, AssertionError: whatever its loader raises
        lines = str(error).strip().splitlines()
        return f"Transformer Engine does not load: {lines[0] if lines else type(error).__name__}"
    return None


def choose(config: PrecisionConfig, machine: Machine) -> Choice | str:
    """The FP8 of a run, or in words why there is none.

    "auto" is the first that can run: Transformer Engine if it is here, torch's own products, and on a CPU the
    emulation, where no speed is lost by it. A GPU without FP8 units emulates only when told to.

    Raises:
        ConfigError: there is none, and precision.fallback=error.
    """
    backends = [config.backend]
    if config.backend is Backend.auto:
        backends = [Backend.te, Backend.scaled_mm] if machine.here else [Backend.scaled_mm, Backend.te]
        if machine.kind == "cpu" and config.fallback is Fallback.bf16:
            backends = [Backend.emulated]
    reasons = []
    for backend in backends:
        recipe = _recipe_for(backend, machine) if config.recipe is Recipe.auto else config.recipe
        reason = why_not(backend, recipe, machine)
        if reason is None:
            return Choice(backend, recipe)
        reasons.append(reason)
    reason = "; ".join(dict.fromkeys(reasons))
    if config.fallback is Fallback.error:
        raise ConfigError(
            "precision.fallback",
            "error",
            f"FP8 cannot run: {reason}; precision=bf16 trains here, and precision.backend=emulated shows what FP8 "
            "would do to learning",
        )
    return reason


def _recipe_for(backend: Backend, machine: Machine) -> Recipe:
    """MXFP8 where the GPU has it built in; otherwise one scale a tensor, the fastest of the others."""
    if backend is Backend.te and machine.capability is not None and 10 <= machine.capability < 12:
        return Recipe.mxfp8
    return Recipe.tensorwise
