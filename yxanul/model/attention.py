"""Causal attention over the packed row.

The model works on one flat row of tokens; only attention and positions know where sequences begin. A segment
is a stretch of the row that attends to itself alone: it ends with its sequence or with its document.

A dense kernel works in tiles, so thousands of calls (or of padded rows) for sequences of 8 tokens would be
mostly waste: short sequences are packed into tiles of `TILE` tokens with a block-diagonal causal mask. Long
ones need no mask at all: each segment is one causal call, and a document's end makes its calls cheaper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128


@dataclass(frozen=True)
class Layout:
    """How a packed row of tokens falls into segments, prepared once for all layers.

    Exactly one is set: `mask`, bool (tiles, 1, tile, tile), for short sequences, or `lengths`, the tokens of
    each segment, for long ones.
    """

    mask: Tensor | None = None
    lengths: tuple[int, ...] | None = None


def layout(segment_starts: Sequence[int], num_tokens: int, seq_len: int, device: torch.device) -> Layout:
    """The layout of a row of `num_tokens` tokens.

    Args:
        segment_starts: ascending positions in the row where a segment begins; the first is 0.
        seq_len: no segment is longer, and every multiple of it begins a segment.
    """
    starts = torch.as_tensor(segment_starts, dtype=torch.int64)
    if seq_len > TILE:
        lengths = torch.diff(starts, append=torch.tensor([num_tokens]))
        return Layout(lengths=tuple(lengths.tolist()))
    tile = TILE // seq_len * seq_len
    segments = torch.zeros(-(-num_tokens // tile) * tile, dtype=torch.int32)
    segments[starts] = 1
    tiles = segments.cumsum(0).view(-1, tile)
    same = tiles[:, :, None] == tiles[:, None, :]
    return Layout(mask=same.tril().unsqueeze(1).to(device))


def attend(q: Tensor, k: Tensor, v: Tensor, where: Layout) -> Tensor:
    """Causal attention inside each segment.

    Args:
        q: (tokens, heads, head size); k, v: (tokens, key/value heads, head size), key/value heads dividing heads.

    Returns:
        (tokens, heads, head size).
    """
    if where.lengths is not None:
        return _attend_segments(q, k, v, where.lengths)
    return _attend_tiles(q, k, v, where.mask)


def _attend_segments(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    pieces = zip(*(x.transpose(0, 1).unsqueeze(0).split(lengths, dim=2) for x in (q, k, v)), strict=True)
    gqa = q.size(1) != k.size(1)
    outputs = [F.scaled_dot_product_attention(*piece, is_causal=True, enable_gqa=gqa) for piece in pieces]
    return torch.cat(outputs, dim=2).squeeze(0).transpose(0, 1)


def _attend_tiles(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    num_tokens, (tiles, _, tile, _) = q.size(0), mask.shape
    padding = tiles * tile - num_tokens
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)).view(tiles, tile, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.size(1) != k.size(1))
    return out.transpose(1, 2).reshape(tiles * tile, *out.shape[1::2])[:num_tokens]
