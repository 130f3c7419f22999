"""What really ran: the matrix products of one forward and backward, and how FP8 treats each layer's numbers.

Products are seen where torch dispatches them, below the code that asked for them, so that a silent fallback shows.
Done on a few sequences beside training, uncompiled, because a compiled graph shows nothing of its insides.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from yxanul.config import Backend, Recipe
from yxanul.precision.formats import Format, Scaling, quantize
from yxanul.precision.plan import FP8, PlannedProduct, base_format, fp8_layers
from yxanul.precision.recipes import Operands, Role, aligned, operands, shape
from yxanul.precision.support import Choice

CODES = (torch.float8_e4m3fn, torch.float8_e5m2)

Key = tuple[str, int, int, int]
"""(format, smaller and larger side of the result, summed): a product and its transpose are one."""


class SeenProducts(TorchDispatchMode):
    """Counts matrix products by format and shape while it is entered.

    An emulated FP8 product is one in float32 whose operands were both codes the moment before.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[Key] = Counter()
        self._decoded = 0
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = "" if self._paused else function.overloadpacket.__name__
        if name == "_to_copy" and args[0].dtype in CODES:
            self._decoded += 1
        elif name in ("mm", "_scaled_mm", "_scaled_mm_v2"):
            in_fp8 = name != "mm" or self._decoded == 2
            self.counts[key(FP8 if in_fp8 else _name(args[0].dtype), args[0].size(0), *args[1].shape[::-1])] += 1
            self._decoded = 0
        return function(*args, **(kwargs or {}))


def key(format_: str, rows: int, columns: int, summed: int) -> Key:
    """The key of a product of these sizes."""
    return format_, min(rows, columns), max(rows, columns), summed


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(dtype, str(dtype))


@dataclass(frozen=True)
class Statistics:
    """How FP8 treats the numbers of one operand.

    Attributes:
        amax: the largest magnitude.
        saturated: share of the values beyond the format's range, clamped or not finite.
        flushed: share of the values that are not zero and become it.
        error: of the values that are not zero, the mean relative error of quantization; 1 where all become zero.
    """

    amax: float
    saturated: float
    flushed: float
    error: float


@dataclass(frozen=True)
class Observation:
    """What one forward and backward showed.

    Attributes:
        tokens: of it.
        products: how many of each were seen.
        layers: layer's name -> operand ("input", "weight", "gradient") -> its statistics; of layers in FP8.
    """

    tokens: int
    products: Counter[Key]
    layers: dict[str, dict[str, Statistics]]


def observe(model: nn.Module, run: Callable[[], object], tokens: int, fp8: Choice | None) -> Observation:
    """Watch `run`, a forward and backward of the model over so many tokens."""
    seen = SeenProducts()
    found: dict[str, dict[str, Tensor]] = {}
    with ExitStack() as stack:
        for name, layer in fp8_layers(model).items():
            if layer.active and layer.roles:
                hook = _watch(found.setdefault(name, {}), seen, fp8)
                stack.callback(layer.register_forward_hook(hook).remove)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(seen)
        run()
    layers = {
        name: {operand: Statistics(*figures.tolist()) for operand, figures in of_layer.items()}
        for name, of_layer in found.items()
    }
    return Observation(tokens, seen.counts, layers)


def _watch(found: dict[str, Tensor], seen: SeenProducts, fp8: Choice) -> Callable:
    """A forward hook that notes the statistics of input and weight, and of the gradient when it comes."""

    def note(operand: str, matrix: Tensor, role: Role, turned: bool = False) -> None:
        how = _operands(fp8, role)
        with seen.paused():
            found[operand] = statistics(
                matrix, how.right_format if turned else how.left_format, how.right if turned else how.left
            )

    def hook(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        note("input", inputs[0], Role.forward)
        note("weight", layer.weight, Role.forward, turned=True)
        out.register_hook(lambda gradient: note("gradient", gradient, Role.data_gradient))

    return hook


def _operands(fp8: Choice, role: Role) -> Operands:
    """Delayed scaling, whose scales are Transformer Engine's secret, is looked at as if they were this step's."""
    return operands(Recipe.tensorwise if fp8.recipe is Recipe.delayed else fp8.recipe, role, power_of_two=False)


def statistics(matrix: Tensor, fp8: Format, scaling: Scaling) -> Tensor:
    """The figures of `Statistics`, float32 (4,), still on the device."""
    exact = matrix.detach().float()
    quantized = quantize(exact, fp8, scaling)
    values, magnitude = quantized.dequantize(), exact.abs()
    at_the_end = quantized.codes.float().abs() == fp8.largest
    saturated = (at_the_end & (magnitude > values.abs() * (1 + 2 * fp8.rounding))) | ~exact.isfinite()
    nonzero = magnitude > 0
    count = nonzero.sum().clamp(min=1)
    flushed = ((values == 0) & nonzero).sum() / count
    error = torch.where(nonzero, (values - exact).abs() / magnitude, 0).sum() / count
    return torch.stack([magnitude.amax(), saturated.float().mean(), flushed, error])


def differences(planned: Sequence[PlannedProduct], observation: Observation, fp8: Choice | None) -> list[str]:
    """Where what ran is not what was planned, a line each; empty if all did.

    Transformer Engine multiplies below torch's dispatcher: its products are held to be in FP8 where none of their shape
    was seen in the activations' dtype.
    """
    base = base_format(planned)
    expected: Counter[Key] = Counter()
    fallen_back: dict[Key, str] = {}
    for product in planned:
        if not product.in_layers:
            continue
        role, sizes = Role(product.role), (observation.tokens, product.n, product.k)
        if product.format != FP8:
            expected[key(product.format, *shape(role, *sizes))] += 1
            continue
        fallen_back[key(base, *shape(role, *sizes))] = product.name
        if fp8.backend is not Backend.te:
            expected[key(FP8, *aligned(fp8.recipe, role, *sizes))] += 1
    seen = observation.products
    lines = [
        f"{count} products in {format_} of {rows} x {columns} over {summed} were planned, {seen[each]} ran"
        for each, count in expected.items()
        for format_, rows, columns, summed in [each]
        if seen[each] < count
    ]
    silent = {each: name for each, name in fallen_back.items() if seen[each] and not expected[each]}
    return lines + [f"{name} was planned in fp8 and ran in {base}" for name in silent.values()]
