"""The embedding and the head: one table, optionally factorized, or a full one each.

At rank r the table is (vocabulary, r) and a projection (r, hidden) leads to the model and back, as in ALBERT
(arXiv 1909.11942): at a vocabulary of 200,000 it takes 25.7M parameters where a full table takes 153.6M.
A head of its own is as in GPT-NeoX (arXiv 2204.06745) and begins at zero as muP advises (arXiv 2203.03466, D.2) and
modded-nanogpt does: the first guess is uniform, and the first step is the head's alone.
The vocabulary is padded, for the alignment of matrix products; padding is never a target.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB_MULTIPLE = 128


def padded_vocab(vocab_size: int) -> int:
    """Rows of the table: `vocab_size` rounded up to a multiple of 128."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Embedding(nn.Module):
    """Tokens -> hidden states, and hidden states -> the input and weight of the head's last product.

    Args:
        rank: inner dimension of the factorization; None for a full table.
        tied: the head is the embedding transposed; otherwise it has a full table of its own, and `rank` is None.
        dtype: what lookups and products are made in; the parameters are float32.
    """

    def __init__(self, vocab_size: int, hidden_size: int, rank: int | None, tied: bool, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.table = nn.Parameter(torch.empty(padded_vocab(vocab_size), rank or hidden_size))
        self.projection = nn.Parameter(torch.empty(rank, hidden_size)) if rank else None
        self.head_table = None if tied else nn.Parameter(torch.empty_like(self.table))

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens,) int64 -> (tokens, hidden)."""
        rows = F.embedding(tokens, self.table).to(self.dtype)
        return rows if self.projection is None else rows @ self.projection.to(self.dtype)

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, hidden) -> (tokens, rank) and the weight (vocabulary, rank) whose product are the logits."""
        hidden = hidden.to(self.dtype)
        if self.projection is not None:
            hidden = hidden @ self.projection.to(self.dtype).T
        return hidden, (self.table if self.head_table is None else self.head_table).to(self.dtype)
