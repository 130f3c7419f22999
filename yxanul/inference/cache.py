"""What attention has seen, kept, so that a new token costs one token's work and not the whole text's.

To the model a cache is one more `Layout`: the rows of a batch are its segments. `prefill` takes them as they are packed
and keeps their keys and values; after that every step is a row of one token each, and attends to what is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from yxanul.config import ModelConfig
from yxanul.model.attention import Layout, sdpa
from yxanul.model.transformer import Packed


@dataclass
class Cache:
    """Keys and values of several rows of text.

    Attributes:
        keys, values: a layer each, (rows, key/value heads, room, head size).
        lengths: (rows,) int64, tokens that are kept of each row.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor

    @classmethod
    def empty(cls, model: ModelConfig, rows: int, room: int, device: torch.device, dtype: torch.dtype) -> "Cache":
        shape = rows, model.num_kv_heads, room, model.hidden_size // model.num_heads
        keys, values = ([torch.zeros(shape, device=device, dtype=dtype) for _ in range(model.num_layers)] for _ in "kv")
        return cls(keys, values, torch.zeros(rows, dtype=torch.int64, device=device))

    def prefill(self, texts: Sequence[Sequence[int]]) -> Packed:
        """The rows' texts, one after another, for the model to read; it must be read before the next step."""
        device = self.lengths.device
        sizes = [len(text) for text in texts]
        starts = [sum(sizes[:row]) for row in range(len(sizes))]
        self.lengths = torch.tensor(sizes, device=device)
        return Packed(
            torch.tensor([token for text in texts for token in text], device=device),
            torch.cat([torch.arange(size, device=device) for size in sizes]),
            _Keeping(self, sdpa(starts, sum(sizes), sum(sizes)).map(lambda tensor: tensor.to(device)), sizes),
        )

    def step(self, tokens: Tensor) -> Packed:
        """The next token of each row, (rows,) int64."""
        positions = self.lengths
        self.lengths = positions + 1
        longest = int(self.lengths.max())
        seen = torch.arange(longest, device=tokens.device) < self.lengths[:, None]
        mask = None if seen.all() else seen[:, None, None]
        return Packed(tokens, positions, _Stepping(self, positions, longest, mask))

    def keep_rows(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        self.lengths = self.lengths[rows]
        self.keys, self.values = ([kept[rows] for kept in each] for each in (self.keys, self.values))


@dataclass
class _InOrder:
    """A layout that every layer asks once, in their order."""

    cache: Cache
    layer: int = field(default=0, init=False)

    def next_layer(self) -> tuple[Tensor, Tensor]:
        self.layer += 1
        return self.cache.keys[self.layer - 1], self.cache.values[self.layer - 1]


@dataclass
class _Keeping(_InOrder):
    """Attention inside each text, whose keys and values are kept."""

    inner: Layout
    sizes: list[int]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for kept, new in zip(self.next_layer(), (k, v), strict=True):
            for row, text in enumerate(new.split(self.sizes)):
                kept[row, :, : len(text)] = text.transpose(0, 1)
        return self.inner.attend(q, k, v)


@dataclass
class _Stepping(_InOrder):
    """Attention of one new token a row to all that is kept of it.

    Attributes:
        places: (rows,) where the new tokens go.
        longest: tokens that the longest row then has.
        seen: (rows, 1, 1, length) bool, what each row has; None if all have as many.
    """

    places: Tensor
    longest: int
    seen: Tensor | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.next_layer()
        rows = torch.arange(len(q), device=q.device)
        keys[rows, :, self.places], values[rows, :, self.places] = k, v
        out = F.scaled_dot_product_attention(
            q.unsqueeze(2),
            keys[:, :, : self.longest],
            values[:, :, : self.longest],
            attn_mask=self.seen,
            enable_gqa=q.size(1) != k.size(1),
        )
        return out.squeeze(2)
