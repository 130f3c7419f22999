"""What tokenizers make of the same documents, measured; end-of-text tokens are not counted.

A token spans words if its text has white space between two other characters, as "of the" has. Words are what
`str.split()` gives, characters are code points, bytes are of UTF-8, and a MB is 10^6 of them.

Documents are read as often as there are tokenizers and more, some MB at a time: whatever iterates over the same
texts each time will do, and memory does not grow with them.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from yxanul.tokenizer.encode import Encoder, StockEncoder, batches, num_bytes
from yxanul.tokenizer.load import Tokenizer

LENGTHS = (1_000, 4_000, 16_000)
"""Characters from which a document belongs to the next class of length; the first class lies below."""
REFERENCE = "gpt2"
"""The name of the tokenizer that the others' tokens are counted against."""
CONTEXT_TOKENS = 2048
EXAMPLE_TOKENS = 8
EXAMPLE_CHARACTERS = 1000
SHOWN_TOKENS = 10
BATCH_CHARACTERS = 2_000_000
TIMED_CHARACTERS = 3_000_000
TIMED_BATCH_CHARACTERS = 500_000
SPANS_WORDS = re.compile(r"\S\s+\S")


@dataclass(frozen=True)
class Text:
    """The documents; lists have an entry for each class of length."""

    documents: list[int]
    words: list[int]
    characters: int
    bytes: int
    beginning: str  # of the first document, up to EXAMPLE_CHARACTERS


@dataclass(frozen=True)
class Speed:
    """Of encoding the first TIMED_CHARACTERS in one thread, in MB/s.

    The two encoders take turns, so that what else the machine does slows both. Each reads the text twice; the
    bulk encoder's table of words is empty at first (`bulk_new`) and knows every word the second time
    (`bulk_known`): on much text it comes to lie between. Both are None where it is the stock library itself.
    """

    stock: float
    bulk_new: float | None
    bulk_known: float | None
    same_ids: bool  # that both encoders gave; False is a bug, or a file with settings beyond its merges


@dataclass(frozen=True)
class Occurrences:
    """A token and how often it occurs."""

    token: str
    bytes: int
    count: int


@dataclass(frozen=True)
class Measurement:
    """What one tokenizer makes of the documents; shares are 0..1."""

    name: str
    path: str
    fingerprint: str  # of the file
    vocab_size: int
    tokens: int
    characters_per_token: float
    bytes_per_token: float
    against_reference: float | None  # tokens more than REFERENCE's, as a share of those; None where it is missing
    used_vocabulary: float  # share of the ids that occurs
    spanning_tokens: float  # share of the tokens that spans words
    spanning_vocabulary: float  # share of the ids that does
    tokens_per_word: float | None  # None: no words
    tokens_per_word_by_length: list[float | None]  # for each class of length
    tokens_by_bytes: list[int]  # tokens of 0, 1, 2... bytes
    longest_spanning: list[Occurrences]  # of those that occur, by bytes
    most_frequent_spanning: list[Occurrences]
    example: list[str]  # the first EXAMPLE_TOKENS tokens of the first document
    context_bytes: float  # that CONTEXT_TOKENS hold: the mean over such windows of the documents end to end
    round_trip_failures: int  # documents that are not decoded to what they were
    speed: Speed


def read_text(documents: Iterable[str]) -> Text:
    """Measure the documents themselves.

    Raises:
        ValueError: there are none.
    """
    classes = len(LENGTHS) + 1
    counts, words, characters, size, beginning = np.zeros(classes, np.int64), [0] * classes, 0, 0, None
    for texts in batches(documents, BATCH_CHARACTERS):
        beginning = texts[0][:EXAMPLE_CHARACTERS] if beginning is None else beginning
        length_classes = _length_classes(texts)
        counts += np.bincount(length_classes, minlength=classes)
        for length_class, text in zip(length_classes, texts, strict=True):
            words[length_class] += len(text.split())
        characters += sum(map(len, texts))
        size += sum(map(num_bytes, texts))
    if beginning is None:
        raise ValueError("there is no document")
    return Text(counts.tolist(), words, characters, size, beginning)


def compare(
    tokenizers: Mapping[str, Tokenizer],
    documents: Iterable[str],
    text: Text,
    progress: Callable[[str, float], None] = lambda name, done: None,
) -> list[Measurement]:
    """Measure every tokenizer on the documents.

    Args:
        tokenizers: by the names to show.
        text: what `read_text` found in the documents.
        progress: told each tokenizer's name and the share of the text that it has done.
    """
    measured = [
        measure(name, tokenizer, documents, text, lambda done, name=name: progress(name, done))
        for name, tokenizer in tokenizers.items()
    ]
    reference = next((each.tokens for each in measured if each.name == REFERENCE), None)
    if reference is None:
        return measured
    return [replace(each, against_reference=each.tokens / reference - 1) for each in measured]


def measure(
    name: str, tokenizer: Tokenizer, documents: Iterable[str], text: Text, progress: Callable[[float], None]
) -> Measurement:
    """Measure one tokenizer; see `compare`."""
    encoder = tokenizer.bulk_encoder()
    speed = _speed(tokenizer.stock, encoder, documents)
    counts, by_length, failures = _count(tokenizer, encoder, documents, lambda done: progress(done / text.bytes))
    vocabulary = [tokenizer.decode([index]) for index in range(tokenizer.vocab_size)]
    spanning = np.array([SPANS_WORDS.search(token) is not None for token in vocabulary])
    spanning &= tokenizer.byte_lengths > 0  # special tokens are no text
    tokens = int(counts.sum())
    found = [
        Occurrences(vocabulary[index], int(tokenizer.byte_lengths[index]), int(counts[index]))
        for index in np.flatnonzero(spanning & (counts > 0))
    ]
    return Measurement(
        name=name,
        path=str(tokenizer.path),
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        tokens=tokens,
        characters_per_token=text.characters / tokens,
        bytes_per_token=text.bytes / tokens,
        against_reference=None,
        used_vocabulary=float((counts > 0).mean()),
        spanning_tokens=float(counts[spanning].sum() / tokens),
        spanning_vocabulary=float(spanning.mean()),
        tokens_per_word=_ratio(tokens, sum(text.words)),
        tokens_per_word_by_length=list(map(_ratio, by_length, text.words)),
        tokens_by_bytes=np.bincount(tokenizer.byte_lengths, counts).astype(int).tolist(),
        longest_spanning=sorted(found, key=lambda each: (-each.bytes, -each.count, each.token))[:SHOWN_TOKENS],
        most_frequent_spanning=sorted(found, key=lambda each: (-each.count, each.token))[:SHOWN_TOKENS],
        example=[vocabulary[index] for index in tokenizer.encode([text.beginning])[0][:EXAMPLE_TOKENS]],
        context_bytes=CONTEXT_TOKENS * text.bytes / tokens,
        round_trip_failures=failures,
        speed=speed,
    )


def _count(
    tokenizer: Tokenizer, encoder: Encoder, documents: Iterable[str], report: Callable[[int], None]
) -> tuple[np.ndarray, list[int], int]:
    """How often each id occurs, the tokens of each class of length, and how many documents are not decoded."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    by_length = np.zeros(len(LENGTHS) + 1, np.int64)
    failures = size = 0
    for texts in batches(documents, BATCH_CHARACTERS):
        ids, begins = encoder.encode(texts)
        counts += np.bincount(ids, minlength=len(counts))
        np.add.at(by_length, _length_classes(texts), np.diff(begins))
        rows = np.split(ids, begins[1:-1])
        failures += sum(tokenizer.decode(row.tolist()) != text for row, text in zip(rows, texts, strict=True))
        size += sum(map(num_bytes, texts))
        report(size)
    return counts, by_length.tolist(), failures


def _speed(stock: StockEncoder, bulk: Encoder, documents: Iterable[str]) -> Speed:
    timed = list(batches(_beginning(documents, TIMED_CHARACTERS), TIMED_BATCH_CHARACTERS))
    seconds, same = np.zeros((2, 2)), True  # by reading and encoder
    for reading in seconds:
        for texts in timed:
            began = time.perf_counter()
            expected = [stock.encode([text])[0] for text in texts]  # together they would be encoded in several threads
            turned = time.perf_counter()
            ids = bulk.encode(texts)[0] if bulk is not stock else None
            reading += turned - began, time.perf_counter() - turned
            same = same and (ids is None or np.array_equal(ids, np.concatenate(expected)))
    megabytes = sum(num_bytes(text) for texts in timed for text in texts) / 1e6
    new, known = (megabytes / seconds[:, 1]).tolist() if bulk is not stock else (None, None)
    return Speed(2 * megabytes / float(seconds[:, 0].sum()), new, known, same)


def _beginning(documents: Iterable[str], characters: int) -> Iterator[str]:
    for text in documents:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _length_classes(texts: list[str]) -> np.ndarray:
    return np.searchsorted(LENGTHS, [len(text) for text in texts], side="right")


def _ratio(tokens: int, words: int) -> float | None:
    return tokens / words if words else None
