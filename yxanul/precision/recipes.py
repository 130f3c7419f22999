"""FP8 recipes: how each of a linear layer's three products quantizes its operands.

Every product is `left @ right.T`, with the axis that is summed over last in both operands, so one description
serves all: the forward is input by weight, the data gradient is gradient by the weight turned, and the weight
gradient is the gradient turned by the input turned.
"""

from dataclasses import dataclass
from enum import Enum

from yxanul.config import Recipe
from yxanul.precision.formats import Format, Scaling


class Role(Enum):
    """Of a linear layer's three products, with M tokens, N outputs and K inputs."""

    forward = "forward"  # (M, K) @ (K, N)
    data_gradient = "data gradient"  # (M, N) @ (N, K)
    weight_gradient = "weight gradient"  # (N, M) @ (M, K)


@dataclass(frozen=True)
class Operands:
    """How a product's operands are quantized."""

    left: Scaling
    right: Scaling
    left_format: Format = Format.e4m3
    right_format: Format = Format.e4m3


def operands(recipe: Recipe, role: Role, power_of_two: bool) -> Operands:
    """What the recipe does with the operands of a product.

    tensorwise: one scale a tensor, gradients in E5M2 (arXiv 2209.05433). rowwise: one a row of the left and a column of
    the right operand. blockwise: 1 by 128 for inputs and gradients, 128 by 128 for weights, all in E4M3
    (DeepSeek-V3, arXiv 2412.19437). mxfp8: 1 by 32, powers of two (OCP microscaling, arXiv 2310.10537).
    """
    if recipe is Recipe.tensorwise:
        whole = Scaling(None, None, power_of_two)
        of_left = Format.e4m3 if role is Role.forward else Format.e5m2
        return Operands(whole, whole, left_format=of_left)
    if recipe is Recipe.rowwise:
        row = Scaling(1, None, power_of_two)
        return Operands(row, row)
    if recipe is Recipe.blockwise:
        strip, square = Scaling(1, 128, power_of_two), Scaling(128, 128, power_of_two)
        return Operands(strip, strip if role is Role.weight_gradient else square)
    if recipe is Recipe.mxfp8:
        strip = Scaling(1, 32, power_of_two=True)
        return Operands(strip, strip)
    raise ValueError(f"{recipe.value} is Transformer Engine's alone")


STRIPS = 4
"""What cuBLAS needs the number of strips to be a multiple of, so that each column of their scales begins aligned."""

ALIGNMENT = 16
"""What FP8 products on a GPU need the summed axis and the columns of the result to be multiples of."""


def shape(role: Role, m: int, n: int, k: int) -> tuple[int, int, int]:
    """(rows, columns, summed) of a product of a layer with m tokens, n outputs and k inputs."""
    return {Role.forward: (m, n, k), Role.data_gradient: (m, k, n), Role.weight_gradient: (n, k, m)}[role]


def alignment(how: Operands) -> tuple[int, int, int]:
    """What (rows, columns, summed) of a product must be multiples of; blocks must be whole."""
    of_rows = 1 if how.left.columns is None else max(STRIPS, how.left.rows)
    return of_rows, max(ALIGNMENT, how.right.rows or 0), max(ALIGNMENT, how.left.columns or 0)


def aligned(recipe: Recipe, role: Role, m: int, n: int, k: int) -> tuple[int, int, int]:
    """(rows, columns, summed) of the product with the zeros that align it; Transformer Engine's delayed scaling is
    by tensor."""
    how = operands(Recipe.tensorwise if recipe is Recipe.delayed else recipe, role, power_of_two=False)
    return tuple(-(-size // of) * of for size, of in zip(shape(role, m, n, k), alignment(how), strict=True))
