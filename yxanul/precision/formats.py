"""FP8 numbers: a matrix as 8-bit codes, and the scales that its blocks were divided by.

A format has so few exponents that values are first brought into its range: each block of a matrix is divided by a
scale that puts its largest magnitude at the format's largest number. How far a scale reaches (the whole matrix, a
row, 128 places of a row, a square of 128 by 128) is what recipes differ in.

Codes are made by clamping first: a cast of a larger float32 gives NaN in torch 2.11 and saturates in 2.13.
"""

from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_AMAX = 2.0**-100
"""Blocks of smaller magnitude are scaled as if it were theirs: their scale would leave float32's normal numbers."""


class Format(Enum):
    """E4M3: 3 bits of mantissa up to 448; E5M2: 2 bits up to 57344 (arXiv 2209.05433)."""

    e4m3 = torch.float8_e4m3fn
    e5m2 = torch.float8_e5m2

    @property
    def largest(self) -> float:
        return torch.finfo(self.value).max

    @property
    def rounding(self) -> float:
        """The largest relative error of a normal number."""
        return torch.finfo(self.value).eps / 2


@dataclass(frozen=True)
class Scaling:
    """How far one scale reaches.

    Attributes:
        rows, columns: of the block that shares a scale; None for all of them.
        power_of_two: scales are rounded up to powers of two, so that dividing by them rounds nothing.
    """

    rows: int | None
    columns: int | None
    power_of_two: bool = False

    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The block's size in a matrix of this shape."""
        return self.rows or shape[0], self.columns or shape[1]


@dataclass(frozen=True)
class Quantized:
    """A matrix in FP8: a value is its code times the scale of its block.

    Attributes:
        codes: (rows, columns), of a format's dtype.
        scales: float32 (rows of blocks, columns of blocks); blocks at the end may be incomplete.
    """

    codes: Tensor
    scales: Tensor
    scaling: Scaling

    def dequantize(self) -> Tensor:
        """The values, float32."""
        rows, columns = self.codes.shape
        blocks = _in_blocks(self.codes.float(), self.scaling)
        return (blocks * self.scales[:, None, :, None]).flatten(2).flatten(0, 1)[:rows, :columns]


def quantize(matrix: Tensor, fp8: Format, scaling: Scaling) -> Quantized:
    """A matrix in FP8, scaled by its own largest magnitudes; one that is not finite poisons its whole block.

    Args:
        matrix: (rows, columns), of a floating dtype.
    """
    rows, columns = matrix.shape
    blocks = _in_blocks(matrix, scaling)
    amax = blocks.abs().amax(dim=(1, 3)).float()
    scales = amax.clamp(min=SMALLEST_AMAX) / fp8.largest
    if scaling.power_of_two:
        scales = scales.log2().ceil().exp2()
    divided = blocks.float() / scales[:, None, :, None]
    codes = divided.clamp(-fp8.largest, fp8.largest).to(fp8.value)
    return Quantized(codes.flatten(2).flatten(0, 1)[:rows, :columns].contiguous(), scales, scaling)


def _in_blocks(matrix: Tensor, scaling: Scaling) -> Tensor:
    """(rows of blocks, rows of a block, columns of blocks, columns of a block), padded with zeros."""
    rows, columns = scaling.block(tuple(matrix.shape))
    return pad(matrix, rows, columns).unflatten(1, (-1, columns)).unflatten(0, (-1, rows))


def pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix with zeros below and to its right, to multiples of these; itself if it needs none."""
    below, right = -matrix.size(0) % rows, -matrix.size(1) % columns
    return F.pad(matrix, (0, right, 0, below)) if below or right else matrix
