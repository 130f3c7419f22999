"""FP8 numbers: a matrix as 8-bit codes, and the scales that its blocks were divided by.

A format has so few exponents that values are first brought into its range: each block of a matrix is divided by a
scale that puts its largest magnitude at the format's largest number. How far a scale reaches (the whole matrix, a
row, 128 places of a row, a square of 128 by 128) is what recipes differ in.

Codes are made by clamping first: what a cast makes of larger numbers differs between devices and versions of torch.
"""

from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor


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
    largest = torch.finfo(fp8.value).max  # torch.compile takes numbers of modules and objects for variables
    blocks = _in_blocks(matrix, scaling)
    amax = blocks.abs().amax(dim=(1, 3)).float()
    # Smaller magnitudes are scaled as if they were this one: their scale would leave float32's normal numbers.
    scales = amax.clamp(min=2.0**-100) / largest
    if scaling.power_of_two:
        scales = scales.log2().ceil().exp2()
    divided = blocks.float() / scales[:, None, :, None]
    codes = divided.clamp(-largest, largest).to(fp8.value)
    return Quantized(codes.flatten(2).flatten(0, 1)[:rows, :columns].contiguous(), scales, scaling)


def _in_blocks(matrix: Tensor, scaling: Scaling) -> Tensor:
    """(rows of blocks, rows of a block, columns of blocks, columns of a block), padded with zeros."""
    padded = pad(matrix, scaling.rows or 1, scaling.columns or 1)
    blocks = padded.unflatten(1, (-1, scaling.columns)) if scaling.columns else padded.unsqueeze(1)
    return blocks.unflatten(0, (-1, scaling.rows)) if scaling.rows else blocks.unsqueeze(0)


def pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix with zeros below and to its right, to multiples of these; itself if it needs none.

    Compiled, nothing is copied anyway, and torch 2.11 cannot trace the question.
    """
    below, right = -matrix.size(0) % rows, -matrix.size(1) % columns
    return F.pad(matrix, (0, right, 0, below)) if torch.compiler.is_compiling() or below or right else matrix
