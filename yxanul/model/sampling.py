"""How the next token is chosen from its logits."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to choose.

    Attributes:
        temperature: what logits are divided by; 0 takes the likeliest.
        top_k: only so many of the likeliest; None for all.
        top_p: only the likeliest that together have this probability (nucleus, arXiv 1904.09751); 1 for all.
    """

    temperature: float = 0.8
    top_k: int | None = 50
    top_p: float = 1.0

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """(rows, vocabulary) float32, at least one finite a row -> (rows,) int64."""
        if self.temperature == 0:
            return logits.argmax(1)
        ordered, ids = (logits / self.temperature).sort(dim=1, descending=True, stable=True)
        shares = ordered.softmax(1)
        kept = shares.cumsum(1) - shares < self.top_p  # the one that reaches it is kept
        if self.top_k is not None:
            kept[:, self.top_k :] = False
        chosen = torch.multinomial(torch.where(kept, shares, 0), 1, generator=generator)
        return ids.gather(1, chosen).squeeze(1)
