"""What a run computes in: the factory of the linear layers that the model is built from.

Weights are float32 (the optimizer's master copy); a layer casts them for its products and gives back float32
gradients, so accumulation over micro-batches stays in float32.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yxanul.config import Backend, Dtype, PrecisionConfig
from yxanul.errors import ConfigError
from yxanul.model.transformer import LinearFactory
from yxanul.precision.products import Fp8Linear, emulated, products, scaled_mm
from yxanul.precision.support import Choice, choose, machine

MODULES = "yxanul_precision"
"""Package of the users' modules. It has no __init__.py, so that every folder on the path may hold a part of it."""


class BF16Linear(nn.Linear):
    """A linear layer without bias whose product is made in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(torch.bfloat16), self.weight.to(torch.bfloat16))


@dataclass(frozen=True)
class Precision:
    """What a run computes in.

    Attributes:
        linear: factory of the blocks' linear layers, (in features, out features) -> module.
        dtype: of activations, embedding and head.
        computes: what really runs, in words, for the plan and the record.
        fp8: what makes products in FP8, None if nothing does.
        around: makes the context that a forward runs in; None where it needs none.
        lost: why FP8 that was asked for does not run; None if it does or was not asked for.
        layers: the user's module that the layers are of, None if they are of here.
    """

    linear: LinearFactory
    dtype: torch.dtype
    computes: str
    fp8: Choice | None = None
    around: Callable[[], AbstractContextManager] | None = None
    lost: str | None = None
    layers: str | None = None


def build_precision(config: PrecisionConfig, device: torch.device, capability: float | None = None) -> Precision:
    """The precision of a run on this device; what is computed otherwise than asked is said in words.

    bf16 on a CPU without bf16 units computes in float32.

    Args:
        capability: of a GPU that is planned for and not here.

    Raises:
        ConfigError: FP8 cannot run and precision.fallback=error, or precision.layers names no module.
    """
    base = _without_fp8(config, device)
    if config.layers is not None:
        make = partial(factory_of(config.layers), dtype=base.dtype)
        return replace(base, linear=make, computes=f"{config.layers} over {base.computes}", layers=config.layers)
    if not config.fp8:
        return base
    found = choose(config, machine(device, capability))
    if isinstance(found, str):
        return replace(base, lost=found)
    of_fp8 = _transformer_engine if found.backend is Backend.te else _by_products
    return replace(of_fp8(config, found, base.dtype), computes=f"{found} over {base.computes}")


def factory_of(name: str) -> Callable[..., nn.Module]:
    """`linear(in_features, out_features, dtype)` of the user's module yxanul_precision.<name>.

    It makes a layer without bias with one float32 parameter, weight (out, in), that takes (tokens, in) to
    (tokens, out); dtype is that of the activations. A configuration names a file of that one folder and nothing else,
    so that a stranger's can have no code run but what the user has put there.

    Raises:
        ConfigError: there is no such module, it fails to import, or it has no such function.
    """
    advice = f"put {name}.py, with linear(in_features, out_features, dtype), into a folder {MODULES} on PYTHONPATH"
    if not name.isidentifier():
        raise ConfigError("precision.layers", name, "must be the name of a Python file, without .py")
    try:
        return importlib.import_module(f"{MODULES}.{name}").linear
    except (ImportError, AttributeError) as error:
        raise ConfigError("precision.layers", name, f"{error}; {advice}") from error


def _without_fp8(config: PrecisionConfig, device: torch.device) -> Precision:
    if config.compute_dtype is Dtype.fp32:
        return Precision(_float32, torch.float32, "fp32")
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("avx512_bf16"):
        return Precision(_float32, torch.float32, "fp32 (this CPU has no bf16 units)")
    return Precision(_bf16, torch.bfloat16, "bf16")


def _by_products(config: PrecisionConfig, fp8: Choice, dtype: torch.dtype) -> Precision:
    multiply = emulated if fp8.backend is Backend.emulated else scaled_mm
    products_of = partial(products, multiply, fp8.recipe, config.power_of_two_scales, dtype=dtype)
    return Precision(lambda rows, columns: Fp8Linear(rows, columns, products_of), dtype, "", fp8)


def _transformer_engine(config: PrecisionConfig, fp8: Choice, dtype: torch.dtype) -> Precision:
    """The package is optional, and a GPU that is not here can be planned for without it."""

    def linear(in_features: int, out_features: int) -> nn.Module:
        from yxanul.precision.transformer_engine import te_linear

        return te_linear(in_features, out_features, dtype=dtype)

    def around() -> AbstractContextManager:
        from yxanul.precision.transformer_engine import te_context

        return te_context(fp8.recipe, True, config.power_of_two_scales)

    return Precision(linear, dtype, "", fp8, around)


def _float32(in_features: int, out_features: int) -> nn.Module:
    return nn.Linear(in_features, out_features, bias=False)


def _bf16(in_features: int, out_features: int) -> nn.Module:
    return BF16Linear(in_features, out_features, bias=False)
