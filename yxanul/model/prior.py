"""Counted n-grams as a prior: what they know is added to the logits, and the network learns the rest.

The values of a context lie in a list of the tokens that were seen after it, so a token of the row costs one search
an order and an addition for each of them, and the backward nothing: the prior has no weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yxanul.data.ngrams import NGrams, key_bits


@dataclass(frozen=True)
class Listed:
    """Of one order, for each of some rows of logits: where the list of its context begins, and how long it is."""

    begins: Tensor
    sizes: Tensor
    tokens: Tensor
    values: Tensor


@dataclass(frozen=True)
class Prior:
    """What is added to the logits of some tokens' successors.

    Attributes:
        bias: (vocabulary,), float32.
        lists: an order each, none for the first.
    """

    bias: Tensor
    lists: list[Listed]

    def of(self, rows: slice | Tensor) -> "Prior":
        """Of some of the tokens alone."""
        return Prior(self.bias, [Listed(x.begins[rows], x.sizes[rows], x.tokens, x.values) for x in self.lists])

    def add_to(self, logits: Tensor) -> None:
        """Add it, in place, to float32 logits (tokens, padded vocabulary), which are contiguous.

        It leaves no probability to padding, which without weights of its own would begin with more than all tokens.
        """
        logits[:, : len(self.bias)] += self.bias
        logits[:, len(self.bias) :] = -torch.inf
        flat, width = logits.view(-1), logits.size(1)
        for listed in self.lists:
            rows = torch.repeat_interleave(listed.sizes)
            first = listed.begins - listed.sizes.cumsum(0) + listed.sizes
            entries = torch.arange(len(rows), device=rows.device) + first[rows]
            flat.index_add_(0, rows * width + listed.tokens[entries], listed.values[entries])


class NGramPrior(nn.Module):
    """Finds the prior of packed tokens; its tables follow the model to its device and are in no checkpoint."""

    def __init__(self, ngrams: NGrams):
        super().__init__()
        self.end_of_text = ngrams.end_of_text
        self.bits = key_bits(len(ngrams.bias))
        self.orders = len(ngrams.levels)
        self.register_buffer("bias", ngrams.bias, persistent=False)
        for index, level in enumerate(ngrams.levels):
            for name, tensor in vars(level).items():
                self.register_buffer(f"{name}_{index}", tensor, persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor) -> Prior:
        """The prior of the successors of `tokens`; each sees the tokens before it in its sequence and document.

        Args:
            tokens, positions: (tokens,) int64, as of `Packed`.
        """
        lists = []
        key, known = tokens, torch.ones_like(tokens, dtype=torch.bool)
        for index in range(self.orders):
            if index:
                known = known & (positions >= index) & (tokens.roll(index - 1) != self.end_of_text)
                key = key | tokens.roll(index) << index * self.bits
            lists.append(self._find(index, key, known))
        return Prior(self.bias, lists)

    def after(self, texts: Sequence[Sequence[int]]) -> Prior:
        """The prior of what comes after each text."""
        ends = [list(text[-max(1, self.orders) :]) for text in texts]
        tokens = torch.tensor([token for end in ends for token in end], device=self.bias.device)
        positions = torch.cat([torch.arange(len(end)) for end in ends]).to(tokens.device)
        last = torch.tensor([len(end) for end in ends], device=tokens.device).cumsum(0) - 1
        return self(tokens, positions).of(last)

    def _find(self, index: int, key: Tensor, known: Tensor) -> Listed:
        contexts, starts, tokens, values = (
            getattr(self, f"{name}_{index}") for name in ("contexts", "starts", "tokens", "values")
        )
        place = torch.searchsorted(contexts, key).clamp_(max=len(contexts) - 1)
        found = known & (contexts[place] == key)
        return Listed(starts[place], torch.where(found, starts[place + 1] - starts[place], 0), tokens, values)
