"""Prompts that end where no token does.

A tokenizer cuts a whole text otherwise than the beginning of it: after "by the wa" a model that has always read
" by the way" as one token has never seen the tokens of " by the wa". So the end of a prompt that some longer token
begins with is taken back, and what is generated must first spell it again, in whatever tokens the model likes.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of every token; empty for special ones, which spell nothing."""

    tokens: Sequence[bytes]

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int]]:
        return sorted((token, index) for index, token in enumerate(self.tokens) if token)

    @cached_property
    def _index(self) -> dict[bytes, int]:
        return dict(reversed(self._sorted))

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.tokens))

    def beginning_with(self, start: bytes) -> list[int]:
        """The tokens that begin with `start`, itself among them."""
        found = []
        for token, index in self._sorted[bisect_left(self._sorted, (start, 0)) :]:
            if not token.startswith(start):
                break
            found.append(index)
        return found

    def continues(self, start: bytes) -> bool:
        """Whether some token is longer than `start` and begins with it."""
        place = bisect_left(self._sorted, (start + b"\0", 0))
        return place < len(self._sorted) and self._sorted[place][0].startswith(start)

    def spelling(self, rest: bytes) -> Tensor:
        """The tokens that may come where `rest` is still to be spelled, int64: parts of it, and what goes beyond."""
        parts = [self._index[rest[:end]] for end in range(1, len(rest)) if rest[:end] in self._index]
        return torch.tensor(parts + self.beginning_with(rest))


def take_back(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[list[int], bytes]:
    """A prompt's tokens without those that a longer token could stand for, and the bytes that are to be spelled again.

    As many as possible are taken back: a token of several words may begin well before the last space.
    """
    kept, rest, ending = len(ids), b"", b""
    for place in range(len(ids) - 1, -1, -1):
        token = vocabulary.tokens[ids[place]]
        ending = token + ending
        if not token or len(ending) >= vocabulary.longest:
            break
        if vocabulary.continues(ending):
            kept, rest = place, ending
    return list(ids[:kept]), rest
