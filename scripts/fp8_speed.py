"""Every FP8 recipe at every product of a model, timed: `python scripts/fp8_speed.py [overrides] [output=FILE]`.

    python scripts/fp8_speed.py model=yxanul_197m hardware=h100
    python scripts/fp8_speed.py model=wide_1b hardware=h100

Prints how many times as fast as in bf16 each product is, quantization included and compiled as the run would be, and
writes the same as JSON. Needs a GPU with FP8 units; recipes that it cannot run stand with the reason.
"""

import json
import platform
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from yxanul import hardware
from yxanul.composition import config_dir, parse, register
from yxanul.config import Backend, Config, Recipe
from yxanul.kernels import compiles
from yxanul.model.count import layer_matrices
from yxanul.precision.linear import build_precision
from yxanul.precision.recipes import Role
from yxanul.precision.support import RECIPES, machine, why_not
from yxanul.precision.timing import timer

TOKENS = 65536


def composed(overrides: list[str]) -> Config:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return parse(compose("train", ["precision=fp8", *overrides]))


def ratios(config: Config, backend: Backend, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Matrix and role -> how many times as fast as in bf16."""
    precision = replace(config.precision, backend=backend, recipe=recipe)
    compiled = backend is not Backend.te and compiles(config.hardware, device)
    timed = timer(precision, build_precision(precision, device), device, compiled)
    return {
        f"{name} {role.value}": timed(role, TOKENS, n, k)
        for name, (n, k) in layer_matrices(config.model).items()
        for role in Role
    }


def main() -> int:
    outputs = [each.removeprefix("output=") for each in sys.argv[1:] if each.startswith("output=")]
    config = composed([each for each in sys.argv[1:] if not each.startswith("output=")])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = machine(device)
    candidates = [(backend, recipe) for backend in (Backend.te, Backend.scaled_mm) for recipe in RECIPES[backend]]
    refused = {each: reason for each in candidates if (reason := why_not(*each, here))}
    if len(refused) == len(candidates):
        print(f"error: no FP8 here: {next(iter(refused.values()))}", file=sys.stderr)
        return 1
    found = {
        f"{backend.value} {recipe.value}": ratios(config, backend, recipe, device)
        for backend, recipe in candidates
        if (backend, recipe) not in refused
    }
    table = Table("product", *found, title=f"times as fast as bf16, {TOKENS:,} tokens, {hardware.describe(device)}")
    for product in next(iter(found.values())):
        table.add_row(product, *(f"{of_recipe[product]:.2f}" for of_recipe in found.values()))
    console = Console()
    console.print(table)
    for (backend, recipe), reason in refused.items():
        console.print(f"{backend.value} {recipe.value}: {reason}")
    now = datetime.now(UTC)
    file = Path(*outputs or [f"fp8-{now:%Y%m%d-%H%M%S}.json"])
    record = {
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "device": hardware.describe(device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "tokens": TOKENS,
        "refused": {f"{backend.value} {recipe.value}": reason for (backend, recipe), reason in refused.items()},
        "times_as_fast_as_bf16": found,
    }
    file.write_text(json.dumps(record, indent=2) + "\n")
    console.print(f"written: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
