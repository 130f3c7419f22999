"""What counting knows: how often words follow words, as a softmax can add it to what a network says.

A network spends most of a short run on learning how often tokens follow one another, and counting them takes
seconds (n-gram residual, arXiv 2210.14431). Counted are interpolated n-grams with modified Kneser-Ney discounts
(Chen and Goodman, "An empirical study of smoothing techniques", 1999, section 3), kept as logits: at order k

    p_k(t | context) = (count - discount) / total + (discounts / total) * p_{k-1}(t | shorter context)

is, up to a factor that all tokens share, p_{k-1} times `1 + (count - discount) / (discounts * p_{k-1})`, and that
factor is 1 for every token that was not seen after the context. So the logarithm of p_1 and, for the few tokens that
were seen, a value an order give all of it by addition.

What is counted is never read: the counts of a text are far too sure of that very text, and a network that
is trained on both would learn to believe them.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from yxanul.config import NGramConfig
from yxanul.data.shards import Corpus
from yxanul.errors import ConfigError, UserError
from yxanul.files import atomic_path, locked
from yxanul.seals import intact, seal
from yxanul.spent import add_seconds

FORMAT = 1
"""Of the files; another one is another name."""


@dataclass(frozen=True)
class Level:
    """What is added at one order to the logits of tokens that were seen after a context.

    Attributes:
        contexts: (contexts,) int64, ascending: the tokens before, `key_bits` bits each, the oldest highest.
        starts: (contexts + 1,) int64, where the entries of each context begin.
        tokens: (entries,) int32.
        values: (entries,) float32, in nats.
    """

    contexts: Tensor
    starts: Tensor
    tokens: Tensor
    values: Tensor


@dataclass(frozen=True)
class NGrams:
    """N-gram probabilities as logits.

    Attributes:
        bias: (vocabulary,) float32, log-probabilities of tokens whatever the context.
        levels: of contexts of one token, of two, and so on.
        end_of_text: the token that begins documents; no context reaches beyond it.
    """

    bias: Tensor
    levels: list[Level]
    end_of_text: int

    @property
    def entries(self) -> int:
        return len(self.bias) + sum(len(level.values) for level in self.levels)


def key_bits(vocab_size: int) -> int:
    """Bits of one token in the key of a context."""
    return max(1, (vocab_size - 1).bit_length())


def ngrams_path(corpus: Corpus, config: NGramConfig, cache: Path) -> Path:
    """Where the n-grams of a corpus are kept."""
    of = f"{FORMAT} {corpus.fingerprint} {config.order} {config.tokens}"
    return cache / "ngrams" / f"ngrams-{hashlib.sha256(of.encode()).hexdigest()[:16]}.safetensors"


def load_ngrams(
    corpus: Corpus, config: NGramConfig, vocab_size: int, end_of_text: int, cache: Path, console: Console
) -> NGrams | None:
    """The n-grams of the documents that `counted_documents` names, counted if they were not yet; None at order 0.

    Raises:
        ConfigError: nothing would be left to read, or be counted.
    """
    counted = counted_documents(corpus, config)
    if counted is None:
        return None
    path = ngrams_path(corpus, config, cache)
    with locked(path.with_suffix(".lock")):
        found = read_ngrams(path, end_of_text) if intact(path) else None
        if found is None:
            began = time.perf_counter()
            found = count_ngrams(_row(corpus, counted), vocab_size, end_of_text, config.order)
            with atomic_path(path) as temporary:
                save_file(_tensors(found), temporary)
            seal(path)
            seconds = time.perf_counter() - began
            add_seconds(cache, path.stem, seconds)
            console.print(f"counted {found.entries:,} n-grams in {seconds:.1f} s", highlight=False)
    return found


def counted_documents(corpus: Corpus, config: NGramConfig) -> np.ndarray | None:
    """Which documents are counted and not read, (documents,) bool: by ascending hash; None at order 0.

    Raises:
        ConfigError: that would be all of them, or none.
    """
    if config.order == 0:
        return None
    lengths = np.concatenate([np.diff(offsets) for offsets in corpus.open()[1]])
    order = np.argsort(corpus.hashes(), kind="stable")
    counted = np.zeros(len(lengths), bool)
    counted[order] = lengths[order].cumsum() <= config.tokens
    if not counted.any():
        raise ConfigError("ngram.tokens", config.tokens, "does not reach for a whole document; raise it")
    if counted.all():
        raise ConfigError(
            "ngram.tokens",
            config.tokens,
            f"the data holds {corpus.tokens:,} tokens, and what is counted is not read; "
            f"set for example {corpus.tokens * 3 // 4}",
        )
    return counted


def count_ngrams(row: np.ndarray, vocab_size: int, end_of_text: int, order: int) -> NGrams:
    """The n-grams up to `order` of documents that lie end to end, each begun by `end_of_text`.

    The highest order is counted as it occurs; a lower one by the number of different tokens before it, and as it
    occurs where it begins a document.

    Args:
        row: (tokens,) int64.
        order: at least 1, and `order * key_bits(vocab_size)` below 64.
    """
    bits = key_bits(vocab_size)
    counts = {order: np.unique(_keys(row, order, end_of_text, bits), return_counts=True)}
    for k in range(order - 1, 0, -1):
        counts[k] = _lower(counts[k + 1][0], row, k, end_of_text, bits)
    bias = _unigrams(*counts[1], vocab_size)
    levels, keys, lower = [], np.arange(vocab_size), bias
    for k in range(2, order + 1):
        below = lower[np.searchsorted(keys, counts[k][0] & _mask(k - 1, bits))]
        keys = counts[k][0]
        level, lower = _level(*counts[k], below, bits)
        levels.append(level)
    return NGrams(torch.from_numpy(np.log(bias).astype(np.float32)), levels, end_of_text)


def _keys(row: np.ndarray, k: int, end_of_text: int, bits: int) -> np.ndarray:
    """Of every stretch of k tokens in one document, and the end of it; the oldest token is the highest."""
    count = max(0, len(row) - k + 1)
    key, inside = np.zeros(count, np.int64), np.ones(count, bool)
    for place in range(k):
        tokens = row[place : place + count]
        key = key << bits | tokens
        if 0 < place < k - 1:
            inside &= tokens != end_of_text
    return key[inside]


def _mask(k: int, bits: int) -> int:
    """Of the newest k tokens of a key."""
    return (1 << k * bits) - 1


def _lower(longer: np.ndarray, row: np.ndarray, k: int, end_of_text: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and counts of the k-grams below the different (k+1)-grams `longer`."""
    followed = longer & _mask(k, bits)
    if k > 1:
        keys = _keys(row, k, end_of_text, bits)
        followed = np.concatenate((followed, keys[keys >> (k - 1) * bits == end_of_text]))
    return np.unique(followed, return_counts=True)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken off each count: of Chen and Goodman's three sizes, by how many n-grams have counts of 1 to 4."""
    having = np.maximum(1, np.bincount(np.minimum(counts, 5), minlength=5)[1:5])
    share = having[0] / (having[0] + 2 * having[1])
    sizes = np.arange(1, 4)
    discounts = sizes - (sizes + 1) * share * having[1:] / having[:-1]
    return np.clip(discounts, 0.1, sizes - 0.1)[np.minimum(counts, 3) - 1]


def _unigrams(tokens: np.ndarray, counts: np.ndarray, vocab_size: int) -> np.ndarray:
    """(vocabulary,) probabilities; what the discounts free is shared by all tokens alike."""
    discounts = _discounts(counts)
    probabilities = np.full(vocab_size, discounts.sum() / vocab_size)
    probabilities[tokens] += counts - discounts
    return probabilities / counts.sum()


def _level(keys: np.ndarray, counts: np.ndarray, below: np.ndarray, bits: int) -> tuple[Level, np.ndarray]:
    """An order of n-grams, and the probability of each.

    Args:
        keys: ascending, so that those of one context are together.
        below: probability of each n-gram's last token after the shorter context.
    """
    contexts = keys >> bits
    starts = np.flatnonzero(np.diff(contexts, prepend=-1))
    sizes = np.diff(starts, append=len(keys))
    discounts = _discounts(counts)
    freed = np.repeat(np.add.reduceat(discounts, starts), sizes) * below
    probabilities = (counts - discounts + freed) / np.repeat(np.add.reduceat(counts, starts), sizes)
    level = Level(
        contexts=torch.from_numpy(contexts[starts]),
        starts=torch.from_numpy(np.append(starts, len(keys))),
        tokens=torch.from_numpy((keys & _mask(1, bits)).astype(np.int32)),
        values=torch.from_numpy(np.log1p((counts - discounts) / freed).astype(np.float32)),
    )
    return level, probabilities


def _row(corpus: Corpus, counted: np.ndarray) -> np.ndarray:
    """The tokens of the counted documents end to end, int64."""

    def documents() -> Iterator[np.ndarray]:
        chosen = iter(counted)
        for tokens, offsets in zip(*corpus.open(), strict=True):
            for begin, end in pairwise(offsets):
                if next(chosen):
                    yield tokens[begin:end]

    return np.concatenate([np.zeros(0, np.int64), *documents()])


def _tensors(ngrams: NGrams) -> dict[str, Tensor]:
    tensors = {"bias": ngrams.bias}
    for index, level in enumerate(ngrams.levels):
        tensors |= {f"{index}.{name}": tensor for name, tensor in vars(level).items()}
    return tensors


def read_ngrams(path: Path, end_of_text: int) -> NGrams:
    """The n-grams of a file that `load_ngrams` wrote; raises UserError if it is missing or damaged."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the counted n-grams are damaged ({error})") from error
    bias = tensors.pop("bias")
    names = [field.name for field in fields(Level)]
    levels = range(len(tensors) // len(names))
    return NGrams(bias, [Level(**{name: tensors[f"{k}.{name}"] for name in names}) for k in levels], end_of_text)
