"""The precision plan: every matrix product of a training step, what it runs in, and why.

Made before anything runs and held afterwards against what ran. Products of the layers' matrices may be in FP8, each of
the three by itself; attention, embedding and head are in the activations' dtype; what adds up (master weights,
moments, gradients, loss) is float32 and no product.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from yxanul.config import Backend, ModelConfig, PrecisionConfig, Recipe
from yxanul.model.count import layer_matrices, training_flops_per_token
from yxanul.model.embedding import padded_vocab
from yxanul.precision.linear import Precision
from yxanul.precision.products import Fp8Layer
from yxanul.precision.recipes import Role, aligned, shape
from yxanul.precision.support import Choice

MOST_PADDING = 1.5
"""A product that alignment makes larger than this many times itself stays in bf16: FP8 is at most twice as fast."""

FP8 = "fp8"

Timer = Callable[[Role, int, int, int], float]
"""(role, M, N, K) -> how many times as fast as in the activations' dtype the product is in FP8 on this device."""


@dataclass(frozen=True)
class PlannedProduct:
    """A matrix product of a training step.

    Attributes:
        name: of the weight's layer, for example "blocks.0.attention.qkv", or of the part of the model.
        role: forward, data gradient or weight gradient; "all" for a part that is planned as one.
        m, n, k: tokens of a micro-batch at each sequence length (ascending), outputs, inputs; None for attention.
        share: of the run's FLOPs.
        format: "fp8", "bf16", "fp32", or what precision.layers names.
        reason: why.
        speedup: how many times as fast it is in that format as in the activations' dtype, where that was timed.
    """

    name: str
    role: str
    m: tuple[int, ...] | None
    n: int | None
    k: int | None
    share: float
    format: str
    reason: str
    speedup: float | None = None

    @property
    def in_layers(self) -> bool:
        """Whether it is of a layer's matrix, and so may be in FP8."""
        return self.name.startswith("blocks.")


@dataclass(frozen=True)
class _Decision:
    """Whether a product is in FP8, why, and how many times as fast that is if it was timed."""

    fp8: bool
    reason: str
    ratio: float | None = None


def plan_products(
    config: PrecisionConfig,
    precision: Precision,
    model: ModelConfig,
    vocab_size: int,
    rows: Mapping[int, int],
    tokens: Mapping[int, int],
    timer: Timer | None,
) -> list[PlannedProduct]:
    """Every matrix product of the run's training steps.

    Args:
        rows: sequence length -> tokens of its micro-batches.
        tokens: sequence length -> tokens of the run.
        timer: None where there is nothing to time on: the device is not here, or FP8 is emulated.
    """
    m = tuple(rows[length] for length in sorted(rows))
    total = sum(count * training_flops_per_token(model, vocab_size, length) for length, count in tokens.items())
    base = "bf16" if precision.dtype is torch.bfloat16 else "fp32"
    inside = precision.layers or base

    def share(n: int, k: int) -> float:
        return 2 * n * k * sum(tokens.values()) / total

    found = []
    for index in range(model.num_layers):
        for matrix, (n, k) in layer_matrices(model).items():
            decided = _decide(config, precision, index - model.num_layers, f"blocks.{index}.{matrix}", m, n, k, timer)
            for role, each in decided.items():
                format_, speedup = (FP8, each.ratio) if each.fp8 else (inside, None)
                of_layer = f"blocks.{index}.{matrix}", role.value, m, n, k, share(n, k)
                found.append(PlannedProduct(*of_layer, format_, each.reason, speedup))
    rank, hidden = model.embedding_rank or model.hidden_size, model.hidden_size
    parts = {"head": (padded_vocab(vocab_size), rank)}
    if model.embedding_rank:
        parts |= {"embedding": (hidden, rank), "head projection": (rank, hidden)}
    found += [PlannedProduct(n, "all", m, *nk, 3 * share(*nk), base, "outside the layers") for n, nk in parts.items()]
    attention = 1 - sum(product.share for product in found)
    return [*found, PlannedProduct("attention", "all", None, None, None, attention, base, "scores and softmax")]


def _decide(
    config: PrecisionConfig,
    precision: Precision,
    from_end: int,
    name: str,
    m: tuple[int, ...],
    n: int,
    k: int,
    timer: Timer | None,
) -> dict[Role, _Decision]:
    """For each product of a layer's matrix; Transformer Engine takes all three or none."""
    if precision.layers is not None:
        return dict.fromkeys(Role, _Decision(False, "as precision.layers says"))
    if precision.fp8 is None:
        return dict.fromkeys(Role, _Decision(False, precision.lost or "as precision.compute_dtype says"))
    names = (name, re.sub(r"^blocks\.\d+", f"blocks.{from_end}", name))
    if any(fnmatchcase(each, pattern) for each in names for pattern in config.high_precision):
        return dict.fromkeys(Role, _Decision(False, "kept by precision.high_precision"))
    found = {}
    for role in Role:
        lost = _not_selected(config, names, role) or _misaligned(precision.fp8, role, m, n, k)
        found[role] = _Decision(False, lost) if lost else _by_speed(config, role, m, n, k, timer, precision.fp8)
    left_out = [each.reason for each in found.values() if not each.fp8]
    if precision.fp8.backend is Backend.te and left_out:
        return dict.fromkeys(Role, _Decision(False, f"all or none: {left_out[0]}"))
    return found


def _not_selected(config: PrecisionConfig, names: Sequence[str], role: Role) -> str | None:
    if isinstance(config.select, str):
        return None
    matched = (
        fnmatchcase(each, pattern)
        for name in names
        for each in (name, f"{name}.{role.name}")
        for pattern in config.select
    )
    return None if any(matched) else "not in precision.select"


def _misaligned(fp8: Choice, role: Role, m: Sequence[int], n: int, k: int) -> str | None:
    if fp8.backend is Backend.te:  # which pads nothing; its layer here pads tokens
        of = 32 if fp8.recipe is Recipe.mxfp8 else 16
        return f"Transformer Engine needs sizes that are multiples of {of}" if n % of or k % of else None
    worst = max(
        math.prod(aligned(fp8.recipe, role, tokens, n, k)) / math.prod(shape(role, tokens, n, k)) for tokens in m
    )
    return f"alignment would make it {worst:.2g} times as large" if worst > MOST_PADDING else None


def _by_speed(
    config: PrecisionConfig, role: Role, m: Sequence[int], n: int, k: int, timer: Timer | None, fp8: Choice
) -> _Decision:
    if config.select != "timed":
        return _Decision(True, "selected")
    if fp8.backend is Backend.emulated:
        return _Decision(True, "emulated, so not timed")
    if timer is None:
        return _Decision(True, "if it is faster when timed on the device")
    ratio = min(timer(role, tokens, n, k) for tokens in set(m))
    return _Decision(ratio > 1, f"{ratio:.2f} times as fast in fp8 when timed", ratio)


def time_left(products: Sequence[PlannedProduct]) -> float:
    """The share of the products' time in the activations' dtype that is left with what was timed; FP8 that was not
    is taken to gain nothing."""
    return sum(product.share / (product.speedup or 1) for product in products)


def base_format(products: Sequence[PlannedProduct]) -> str:
    """The activations' dtype: the format of what is never in FP8."""
    return next(product.format for product in products if not product.in_layers)


def totals(products: Sequence[PlannedProduct]) -> dict[str, float]:
    """Share of the run's FLOPs by format, the largest first."""
    found: dict[str, float] = {}
    for product in products:
        found[product.format] = found.get(product.format, 0.0) + product.share
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def assign(model: nn.Module, products: Sequence[PlannedProduct]) -> None:
    """Tell the layers of the model what the plan puts in FP8."""
    fp8: dict[str, set[str]] = {}
    for product in products:
        if product.format == FP8:
            fp8.setdefault(product.name, set()).add(product.role)
    for name, layer in fp8_layers(model).items():
        layer.use(frozenset(Role(role) for role in fp8.get(name, ())))


def fp8_layers(model: nn.Module) -> dict[str, Fp8Layer]:
    """The layers that can run in FP8, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Fp8Layer)}
