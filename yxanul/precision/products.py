"""Linear layers whose three matrix products run each in FP8 or in the activations' dtype.

An FP8 product quantizes both operands, multiplies, and gives the activations' dtype back. `emulated` does so with
float32 products on any device, for the numerics alone; `scaled_mm` is torch's own FP8 product. Weights stay
float32; what the backward needs is kept unquantized, because it is quantized along another axis there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yxanul.config import Recipe
from yxanul.precision.formats import Quantized, pad, quantize
from yxanul.precision.recipes import Operands, Role, alignment, operands

Product = Callable[[Tensor, Tensor], Tensor]
"""(left (rows, summed), right (columns, summed)) -> left @ right.T, (rows, columns), in the activations' dtype."""

Multiply = Callable[[Quantized, Quantized, torch.dtype], Tensor]
"""(left, right, dtype of the result) -> left @ right.T."""


def emulated(left: Quantized, right: Quantized, dtype: torch.dtype) -> Tensor:
    """The product of the dequantized operands in float32."""
    return (left.dequantize() @ right.dequantize().T).to(dtype)


def scaled_mm(left: Quantized, right: Quantized, dtype: torch.dtype) -> Tensor:
    """torch.nn.functional.scaled_mm; operands are aligned."""
    left_scales, left_type = _torch_scales(left, transposed=False)
    right_scales, right_type = _torch_scales(right, transposed=True)
    return F.scaled_mm(left.codes, right.codes.T, left_scales, left_type, right_scales, right_type, output_dtype=dtype)


def _torch_scales(operand: Quantized, transposed: bool) -> tuple[Tensor, F.ScalingType]:
    """Scales in the layout that torch's product reads: cuBLAS wants the outer axis dense for strips, and for squares
    the inner blocks padded to a multiple of 4."""
    scales, (rows, columns) = operand.scales, (operand.scaling.rows, operand.scaling.columns)
    if rows is None:
        return scales.view(()), F.ScalingType.TensorWise
    if columns is None:
        return (scales.T if transposed else scales).contiguous(), F.ScalingType.RowWise
    if rows == 1:
        return scales.T.contiguous().T, F.ScalingType.BlockWise1x128
    return F.pad(scales, (0, -scales.size(1) % 4)).T, F.ScalingType.BlockWise128x128


def fp8_product(multiply: Multiply, how: Operands, dtype: torch.dtype) -> Product:
    """A product in FP8; operands that are not aligned are padded with zeros, which change no sum."""
    of_rows, of_columns, of_summed = alignment(how)

    def product(left: Tensor, right: Tensor) -> Tensor:
        rows, columns = left.size(0), right.size(0)
        left, right = pad(left, of_rows, of_summed), pad(right, of_columns, of_summed)
        found = multiply(quantize(left, how.left_format, how.left), quantize(right, how.right_format, how.right), dtype)
        return found if found.shape == (rows, columns) else found[:rows, :columns]

    return product


def plain_product(dtype: torch.dtype) -> Product:
    """A product in the activations' dtype."""
    return lambda left, right: left.to(dtype) @ right.to(dtype).T


@dataclass(frozen=True)
class Products:
    """The three products of a layer."""

    forward: Product
    data_gradient: Product
    weight_gradient: Product


@cache
def products(
    multiply: Multiply, recipe: Recipe, power_of_two: bool, fp8: frozenset[Role], dtype: torch.dtype
) -> Products:
    """The products of a layer of which those of the roles `fp8` are in FP8.

    The same object for the same arguments, so that torch.compile has one graph for all layers that are alike.
    """
    plain = plain_product(dtype)
    each = [
        fp8_product(multiply, operands(recipe, role, power_of_two), dtype) if role in fp8 else plain for role in Role
    ]
    return Products(*each)


class Fp8Layer(nn.Module):
    """A linear layer of which the plan says, product by product, what runs in FP8.

    Attributes:
        roles: its products in FP8.
        active: whether it is time for them; before, all are made in the activations' dtype.
        first_micro_batch: of a step, whose weights may be quantized once for all micro-batches; None: not known.
    """

    def __init__(self):
        super().__init__()
        self.roles: frozenset[Role] = frozenset()
        self.active = True
        self.first_micro_batch: bool | None = None

    def use(self, roles: frozenset[Role]) -> None:
        """Make these products in FP8 and the others in the activations' dtype."""
        self.roles = roles


class _Linear(torch.autograd.Function):
    """x (tokens, in) and weight (out, in), float32, to (tokens, out)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, of_layer: Products) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.of_layer = of_layer
        return of_layer.forward(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        of_input = ctx.of_layer.data_gradient(gradient, weight.T) if ctx.needs_input_grad[0] else None
        return of_input, ctx.of_layer.weight_gradient(gradient.T, x.T).to(weight.dtype), None


class Fp8Linear(Fp8Layer):
    """A linear layer without bias whose products run in FP8 by a backend that multiplies quantized operands."""

    def __init__(self, in_features: int, out_features: int, products_of: Callable[[frozenset[Role]], Products]):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.products_of = products_of
        self.use(frozenset(Role))

    def use(self, roles: frozenset[Role]) -> None:
        super().use(roles)
        self._products = self.products_of(roles)
        self._plain = self.products_of(frozenset())

    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self._products if self.active else self._plain)
