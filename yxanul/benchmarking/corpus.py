"""Prepared tokens to measure speed on, for any vocabulary, where neither data nor tokenizer are at hand.

Ids are drawn from Zipf's law and lengths of documents from a log-normal one with the mean of FineWeb-Edu's highest
cut in t80k tokens (2.61 billion in 1.48 million documents). They go through the same shards and the same stream as
text does: the speed of a step depends on shapes, not on what the tokens mean.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yxanul.config import OnError
from yxanul.data.documents import Part
from yxanul.data.shards import Corpus, shard_folder

TOKENS = 2_000_000
DOCUMENT_TOKENS = 1763
SIGMA = 1.0


def synthetic_corpus(vocab_size: int, folder: Path) -> Corpus:
    """A corpus of some 2 million random tokens below `vocab_size`, written under `folder`; always the same."""
    part = Part("synthetic", f"zipf {vocab_size}", lambda: _blanks(np.random.default_rng(0)))
    shards = shard_folder([part], "synthetic", vocab_size, 0, 0.0, folder)
    shards.path.mkdir(parents=True, exist_ok=True)
    info = shards.write("00000", ZipfEncoder(vocab_size, np.random.default_rng(1)), OnError.stop)
    return Corpus(shards.path, shards.dtype, [info], 1)


@dataclass(frozen=True)
class ZipfEncoder:
    """As many random ids as a text has characters."""

    vocab_size: int
    random: np.random.Generator

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, and where each begins with the end of the last, as the other encoders give them."""
        begins = np.cumsum([0, *map(len, texts)])
        ranks = self.vocab_size ** self.random.random(begins[-1])  # density 1/rank
        return ranks.astype(np.int64) % self.vocab_size, begins


def _blanks(random: np.random.Generator) -> Iterator[str]:
    total = 0
    while total < TOKENS:
        length = max(1, round(random.lognormal(np.log(DOCUMENT_TOKENS) - SIGMA**2 / 2, SIGMA)))
        total += length
        yield " " * length
