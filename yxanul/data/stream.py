"""The deterministic stream: which tokens a step sees is arithmetic.

Documents are laid end to end in a shuffled order, anew in every epoch; a step reads the stretch of that
endless row that the plan gives it. The batch is a function of (seed, corpus, step, rank) alone, so resuming
needs no state but the step, and reads no data that it does not train on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from yxanul.curriculum import Step
from yxanul.data.shards import Corpus

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class MicroBatch:
    """A packed row of whole sequences.

    Attributes:
        tokens, targets: (tokens,) int64; a target is the token that follows in the stream.
        positions: (tokens,) int64, position in the sequence.
        segment_starts: ascending positions where a sequence or a document begins.
        seq_len: tokens of a sequence.
        bytes: of text that the targets stand for.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segment_starts: np.ndarray
    seq_len: int
    bytes: int


class Stream:
    """The endless row of shuffled documents.

    Args:
        seed: of the order of documents.
        byte_lengths: (vocabulary,) bytes of each token.
        apart: (documents,) bool, those that are not read; None to read all.
    """

    def __init__(self, corpus: Corpus, seed: int, byte_lengths: np.ndarray, apart: np.ndarray | None = None):
        self._shards, offsets = corpus.open()
        read = slice(None) if apart is None else ~apart
        self._lengths = np.concatenate([np.diff(part) for part in offsets])[read]
        self._begins = np.concatenate([part[:-1] for part in offsets])[read]
        self._shard_of = np.repeat(np.arange(len(offsets)), [len(part) - 1 for part in offsets])[read]
        self._seed = [seed, int(corpus.fingerprint[:16], 16)]
        self._byte_lengths = byte_lengths
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        self.tokens_per_epoch = int(self._lengths.sum())

    def micro_batch(self, step: Step, index: int, rank: int = 0) -> MicroBatch:
        """Micro-batch `index` of a step for one of the processes that share it."""
        sequences = rank * sum(step.micro_batches) + sum(step.micro_batches[:index])
        count = step.micro_batches[index] * step.seq_len
        row, document_starts = self.read(step.first_token + sequences * step.seq_len, count + 1)
        starts = np.zeros(count, dtype=bool)
        starts[:: step.seq_len] = True
        starts[document_starts[document_starts < count]] = True
        return MicroBatch(
            tokens=row[:-1],
            targets=row[1:],
            positions=np.arange(count) % step.seq_len,
            segment_starts=np.flatnonzero(starts),
            seq_len=step.seq_len,
            bytes=int(self._byte_lengths[row[1:]].sum(dtype=np.int64)),
        )

    def read(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [position, position + count) of the endless row, int64, and where in them documents begin."""
        pieces, starts, filled = [], [], 0
        while filled < count:
            epoch, within = divmod(position + filled, self.tokens_per_epoch)
            order, ends = self._order(epoch)
            place = int(np.searchsorted(ends, within, side="right"))
            while filled < count and place < len(order):
                document = order[place]
                skipped = within - int(ends[place] - self._lengths[document])
                taken = min(int(self._lengths[document]) - skipped, count - filled)
                begin = int(self._begins[document]) + skipped
                pieces.append(self._shards[self._shard_of[document]][begin : begin + taken])
                if skipped == 0:
                    starts.append(filled)
                filled, within, place = filled + taken, within + taken, place + 1
        return np.concatenate(pieces).astype(np.int64), np.array(starts, dtype=np.int64)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of an epoch in their order, and the position at which each ends."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([*self._seed, epoch]).permutation(len(self._lengths))
            self._epoch = epoch, order, np.cumsum(self._lengths[order])
        return self._epoch[1:]


def prefetch(function: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """`map(function, items)` with up to `depth` results made ahead by one background thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as executor:
        waiting = deque()
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
