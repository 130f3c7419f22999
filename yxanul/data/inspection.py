"""What a run would read, measured: lengths and repetitions of its documents, and what the curriculum cuts from them.

The lengths of a document count the end-of-text token that begins it, as the stages do.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from yxanul.config import InspectConfig
from yxanul.curriculum import Step, capped_stages, plan, stage_steps
from yxanul.data.ngrams import counted_documents
from yxanul.data.shards import Corpus
from yxanul.data.stream import MicroBatch, Stream
from yxanul.errors import ConfigError, UserError
from yxanul.tokenizer.load import Tokenizer

SAMPLE_TOKENS = 2**20
"""Of each stage's beginning, read to see which sequences cross a document boundary."""
BATCH_TOKENS = 2**18
"""Of the micro-batches that are read here; how a step is cut into them changes no token."""
BEGINNING_CHARACTERS = 60
BEGINNING_TOKENS = 4 * BEGINNING_CHARACTERS + 1
"""Enough for that many characters: a token is at least a byte, and the first is the end-of-text token."""


@dataclass(frozen=True)
class Bin:
    """The documents of `begin` to 2 * `begin` - 1 tokens."""

    begin: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Lengths:
    """Of the training documents, in tokens; the bins ascend without gaps."""

    bins: list[Bin]
    median: float
    mean: float
    longest: int


@dataclass(frozen=True)
class Duplicates:
    """Training documents whose text, by its 64-bit hash, occurs before."""

    documents: int
    tokens: int
    times: int  # that the most frequent text occurs
    beginning: str  # of that text


@dataclass(frozen=True)
class StageReading:
    """What one stage takes from the data; shares are 0..1."""

    stage: int  # 1-based
    seq_len: int  # tokens
    steps: int
    sequences: int
    tokens: int
    longer: float  # share of all documents that are longer than a sequence, and so are cut in any order
    longer_tokens: float  # share of all tokens that stand in these
    crossing: float | None  # share of its first sequences in which a document begins after another; None: no steps


@dataclass(frozen=True)
class Sequence:
    """What the model sees as one: `tokens` ids, and the positions in it, 0 included, where attention starts anew."""

    tokens: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """What a run would read; `sequences` are the first of `shown`, an element of `stages`."""

    documents: int
    tokens: int
    lengths: Lengths
    duplicates: Duplicates
    stages: list[StageReading]
    shown: StageReading
    first_step: int | None  # of `shown`, counted from 1; None: it gets no step
    sequences: list[Sequence]


def plan_stages(config: InspectConfig) -> list[list[Step]]:
    """The steps of each stage of the curriculum, as a run plans them but for the size of the micro-batches.

    Raises:
        UserError: the budget holds no step; the stage to show does not exist.
    """
    if config.sequences < 0:
        raise ConfigError("sequences", config.sequences, "must be at least 0")
    count = len(config.curriculum.stages)
    if not 1 <= config.stage <= count:
        raise ConfigError("stage", config.stage, f"the curriculum has {count} stage{'s' * (count > 1)}, counted from 1")
    try:
        steps = plan(
            config.curriculum,
            config.train,
            config.schedule,
            config.optimizer.lr,
            lambda seq_len: max(1, BATCH_TOKENS // seq_len),
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    by_stage = stage_steps(steps)
    return [by_stage.get(index, []) for index in range(count)]


def inspect(corpus: Corpus, tokenizer: Tokenizer, config: InspectConfig, stages: list[list[Step]]) -> Inspection:
    """Measure a corpus that holds a document.

    Args:
        stages: from `plan_stages`.
    """
    lengths = np.concatenate([np.diff(offsets) for offsets in corpus.open()[1]])
    stream = Stream(corpus, config.seed, tokenizer.byte_lengths, counted_documents(corpus, config.ngram))
    readings = [
        stage_reading(number, stage.seq_len, steps, stream, lengths)
        for number, (stage, steps) in enumerate(zip(capped_stages(config.curriculum), stages, strict=True), 1)
    ]
    steps = stages[config.stage - 1]
    return Inspection(
        documents=len(lengths),
        tokens=corpus.tokens,
        lengths=measure_lengths(lengths),
        duplicates=find_duplicates(corpus, tokenizer, lengths),
        stages=readings,
        shown=readings[config.stage - 1],
        first_step=steps[0].index + 1 if steps else None,
        sequences=list(islice(sequences(stream, steps), config.sequences)),
    )


def measure_lengths(lengths: np.ndarray) -> Lengths:
    """Histogram by powers of two, and averages, of (documents,) lengths in tokens, each at least 1."""
    exponents = np.frexp(lengths)[1] - 1  # exact, unlike a logarithm
    documents, tokens = np.bincount(exponents), np.bincount(exponents, weights=lengths)
    bins = [Bin(2**k, int(documents[k]), int(tokens[k])) for k in range(exponents.min(), exponents.max() + 1)]
    return Lengths(bins, float(np.median(lengths)), float(lengths.mean()), int(lengths.max()))


def find_duplicates(corpus: Corpus, tokenizer: Tokenizer, lengths: np.ndarray) -> Duplicates:
    """The training documents that repeat one before them.

    Args:
        lengths: (documents,) of the training documents in tokens.
    """
    _, first, times = np.unique(corpus.hashes(), return_index=True, return_counts=True)
    repeats = np.ones(len(lengths), dtype=bool)
    repeats[first] = False
    most = int(times.argmax())
    return Duplicates(
        documents=int(repeats.sum()),
        tokens=int(lengths[repeats].sum()),
        times=int(times[most]),
        beginning=_beginning(corpus, tokenizer, int(first[most])),
    )


def _beginning(corpus: Corpus, tokenizer: Tokenizer, document: int) -> str:
    for tokens, offsets in zip(*corpus.open(), strict=True):
        if document < len(offsets) - 1:
            begin, end = offsets[document : document + 2].tolist()
            ids = tokens[begin + 1 : min(end, begin + BEGINNING_TOKENS)]
            return tokenizer.decode(ids.tolist())[:BEGINNING_CHARACTERS]
        document -= len(offsets) - 1
    raise IndexError(document)


def stage_reading(number: int, seq_len: int, steps: list[Step], stream: Stream, lengths: np.ndarray) -> StageReading:
    """What stage `number` takes; its crossing sequences are counted in its first SAMPLE_TOKENS."""
    tokens = sum(step.tokens for step in steps)
    longer = lengths > seq_len
    return StageReading(
        stage=number,
        seq_len=seq_len,
        steps=len(steps),
        sequences=tokens // seq_len,
        tokens=tokens,
        longer=float(longer.mean()),
        longer_tokens=float(lengths[longer].sum() / lengths.sum()),
        crossing=_crossing(_micro_batches(stream, steps)) if steps else None,
    )


def _crossing(batches: Iterable[MicroBatch]) -> float:
    """The share of the sequences of the first SAMPLE_TOKENS in which another document begins."""
    crossing = read = 0
    for batch in batches:
        inside, place = np.divmod(batch.segment_starts, batch.seq_len)
        crossing += len(np.unique(inside[place > 0]))
        read += len(batch.tokens)
        if read >= SAMPLE_TOKENS:
            break
    return crossing * batch.seq_len / read


def sequences(stream: Stream, steps: list[Step]) -> Iterator[Sequence]:
    """Every sequence of `steps`, in order."""
    for batch in _micro_batches(stream, steps):
        for begin in range(0, len(batch.tokens), batch.seq_len):
            end = begin + batch.seq_len
            low, high = np.searchsorted(batch.segment_starts, [begin, end])
            yield Sequence(batch.tokens[begin:end], batch.segment_starts[low:high] - begin)


def _micro_batches(stream: Stream, steps: list[Step]) -> Iterator[MicroBatch]:
    return (stream.micro_batch(step, index) for step in steps for index in range(len(step.micro_batches)))
