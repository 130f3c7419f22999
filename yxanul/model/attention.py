"""Causal attention over the packed row.

The model works on one flat row of tokens; only attention and positions know where sequences begin. A segment
is a stretch of the row that attends to itself alone: it ends with its sequence or with its document.

An `Attention` prepares where the segments are, on the host, into a `Layout`; every layer then asks the layout.
Here are those that run everywhere; `sdpa` is torch's scaled_dot_product_attention. Such a dense kernel works in
tiles, so thousands of calls (or of padded rows) for sequences of 8 tokens would be mostly waste: short
sequences are packed into tiles of `TILE` tokens with a block-diagonal causal mask. Long ones need no mask at
all: segments of one length are one causal call, and a document's end makes its calls cheaper. Kernels for CUDA are in
`yxanul.model.cuda_attention`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128

BLOCK = 256
"""Queries that batched products take at once: longer sequences go block by block, each with the keys up to its end."""


class Layout(Protocol):
    """How a packed row of tokens falls into segments, prepared once for all layers."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Layout":
        """The same with `function`, for example a copy to a device, applied to its tensors."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention inside each segment.

        Args:
            q: (tokens, heads, head size); k, v: (tokens, key/value heads, head size), key/value heads dividing
                heads.

        Returns:
            (tokens, heads, head size).
        """


Attention = Callable[[Sequence[int], int, int], Layout]
"""(segment starts, tokens of the row, sequence length) -> the row's layout on the host.

Segment starts are ascending positions in the row, the first 0; no segment is longer than the sequence length,
and every multiple of it begins one.
"""


def sdpa(segment_starts: Sequence[int], num_tokens: int, seq_len: int) -> Layout:
    """An `Attention` by scaled_dot_product_attention: on any device, in any dtype."""
    if seq_len <= TILE:
        return Tiles(_tile_mask(segment_starts, num_tokens, seq_len))
    starts = torch.as_tensor(segment_starts, dtype=torch.int64)
    return Segments(tuple(torch.diff(starts, append=torch.tensor([num_tokens])).tolist()))


def bmm(segment_starts: Sequence[int], num_tokens: int, seq_len: int) -> Layout:
    """An `Attention` by batched matrix products over tiles.

    On a CPU in bf16 they are 1.7 to 5 times as fast as torch's fused kernel (measured at lengths 8 to 2048); what
    they hold grows with the square of the length.
    """
    return Products(_tile_mask(segment_starts, num_tokens, seq_len))


def tile_tokens(seq_len: int) -> int:
    """Tokens of a tile: as many sequences as TILE holds, or one."""
    return max(1, TILE // seq_len) * seq_len


def keys_held(tile: int) -> int:
    """Keys that batched products hold a score for, on average over the queries of a tile of so many tokens."""
    ends = [min(begin + BLOCK, tile) for begin in range(0, tile, BLOCK)]
    return sum((end - begin) * end for begin, end in zip([0, *ends], ends, strict=False)) // tile


def _tile_mask(segment_starts: Sequence[int], num_tokens: int, seq_len: int) -> Tensor:
    """Which keys a query of the same tile sees, bool (tiles, 1, tile, tile)."""
    tile = tile_tokens(seq_len)
    segments = torch.zeros(-(-num_tokens // tile) * tile, dtype=torch.int32)
    segments[torch.as_tensor(segment_starts, dtype=torch.int64)] = 1
    tiles = segments.cumsum(0).view(-1, tile)
    return (tiles[:, :, None] == tiles[:, None, :]).tril().unsqueeze(1)


@dataclass(frozen=True)
class Segments:
    """Long segments, of these many tokens: a causal call for all that have the same length."""

    lengths: tuple[int, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Segments":
        return self

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        split = [x.split(self.lengths) for x in (q, k, v)]
        members = defaultdict(list)
        for place, length in enumerate(self.lengths):
            members[length].append(place)
        outputs = [q] * len(self.lengths)
        for places in members.values():
            together = (torch.stack([pieces[place] for place in places]).transpose(1, 2) for pieces in split)
            out = F.scaled_dot_product_attention(*together, is_causal=True, enable_gqa=q.size(1) != k.size(1))
            for place, piece in zip(places, out.transpose(1, 2).unbind(), strict=True):
                outputs[place] = piece
        return torch.cat(outputs)


@dataclass(frozen=True)
class Tiles:
    """Short segments: tiles of whole sequences under a mask, bool (tiles, 1, tile, tile)."""

    mask: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tiles":
        return replace(self, mask=function(self.mask))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tiles, _, tile, _ = self.mask.shape
        padding = tiles * tile - q.size(0)
        in_tiles = (F.pad(x, (0, 0, 0, 0, 0, padding)).view(tiles, tile, *x.shape[1:]) for x in (q, k, v))
        return self._attend(*in_tiles).reshape(tiles * tile, *q.shape[1:])[: q.size(0)]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All (tiles, tile, heads, head size)."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=q.size(1) != k.size(1))
        return out.transpose(1, 2)


@dataclass(frozen=True)
class Products(Tiles):
    """The same tiles by two batched products and a softmax; the query heads of a group are rows of one product."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tiles, tile, heads, size = q.shape
        groups = k.size(2)
        q = (q * size**-0.5).view(tiles, tile, groups, -1, size).permute(0, 2, 3, 1, 4)
        k, v = (x.transpose(1, 2).reshape(tiles * groups, tile, size) for x in (k, v))
        blocks = []
        for begin in range(0, tile, BLOCK):
            end = min(begin + BLOCK, tile)
            rows = q[..., begin:end, :].reshape(tiles * groups, -1, size)
            scores = (rows @ k[:, :end].mT).view(tiles, heads, -1, end)
            shares = (scores + self._hidden(begin, end, q.dtype)).softmax(-1)
            out = shares.view(tiles * groups, -1, end) @ v[:, :end]
            blocks.append(out.view(tiles, groups, -1, end - begin, size))
        return torch.cat(blocks, dim=3).permute(0, 3, 1, 2, 4)

    def _hidden(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        """What hides from these queries of every tile the keys that they may not see: 0 or -inf, to be added."""
        seen = self.mask[..., begin:end, :end]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)
