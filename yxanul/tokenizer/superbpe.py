"""Train a SuperBPE tokenizer: byte-level BPE first within words, then across spaces.

Superwords (" of the", " is not None:") put an eighth more text into a token at 8192 entries, a
third at 200,000, so that a run sees more bytes in as many steps. The stock trainer can neither
continue from given merges nor refuse one: it learns the words, this module the superwords. The
result is an ordinary tokenizer.json, and whoever loads it needs nothing of ours.

Source of the method and of its two rules: SuperBPE, arXiv 2503.13423.
"""

import heapq
import json
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps

END_OF_TEXT = "<|endoftext|>"
MAX_WORDS = 4
# A pair seen once is a memory of one place, not a regularity of the language.
MIN_PAIR_COUNT = 2

BYTE_SYMBOLS = sorted(ByteLevel.alphabet())
SMALLEST_VOCABULARY = len(BYTE_SYMBOLS) + 1

# What a token of the first stage may not cross: words, numbers, punctuation, white space.
_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What a superword may not cross or hold. A line break begins a piece rather than ends one: Python's
# indentation then joins it, and prose gains too. Indentation and punctuation are not set apart, as
# in a later published regex: on Python that costs a tenth of the bytes in a token.
_LINE_BREAKS = r"\n+"
_NUMBERS = r"\p{N}{1,3}"

Vocabulary = dict[str, int]
Merges = list[tuple[str, str]]


def train_bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Plain byte-level BPE within words: what a SuperBPE tokenizer is to be compared with.

    The vocabulary has exactly `vocab_size` entries: the 256 byte symbols, the merges, and
    END_OF_TEXT, which is the last id (`vocab_size` - 1). Any text is encoded without loss. The
    same texts in the same order give the same tokenizer. Raises ValueError if `vocab_size` cannot
    hold the bytes or `texts` are too few to fill it.
    """
    vocabulary, merges = _learn_words(texts, vocab_size)
    return _assemble(vocabulary, merges, _within_words())


def train_superbpe(texts: Sequence[str], vocab_size: int, transition: int) -> Tokenizer:
    """SuperBPE (arXiv 2503.13423): words up to `transition` entries, superwords to `vocab_size`.

    The vocabulary is as in `train_bpe`; both sizes count all entries, END_OF_TEXT among them, so
    `transition == vocab_size` learns no superword. A superword stays within a line, has at most
    MAX_WORDS words and never holds a colon followed by a space. Raises ValueError as `train_bpe`
    does, and if `transition` exceeds `vocab_size`.
    """
    if transition > vocab_size:
        raise ValueError(f"transition {transition} exceeds vocab_size {vocab_size}: use at most that.")
    vocabulary, merges = _learn_words(texts, transition)
    pieces = _encoded_pieces(texts, models.BPE(vocab=vocabulary, merges=merges))
    _learn_superwords(pieces, vocabulary, merges, vocab_size)
    return _assemble(vocabulary, merges, _within_lines())


def _within_words() -> PreTokenizer:
    return Steps([Split(Regex(_WORDS), "isolated"), _bytes()])


def _within_lines() -> PreTokenizer:
    lines = Split(Regex(_LINE_BREAKS), "merged_with_next")
    return Steps([lines, Split(Regex(_NUMBERS), "isolated"), _bytes()])


def _bytes() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False, use_regex=False)


def _assemble(vocabulary: Vocabulary, merges: Merges, pre_tokenizer: PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def _learn_words(texts: Sequence[str], vocab_size: int) -> tuple[Vocabulary, Merges]:
    """The first stage: `vocab_size` - 1 entries, leaving the last id to END_OF_TEXT."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"{vocab_size} entries cannot hold 256 bytes and {END_OF_TEXT}: use more.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _within_words()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=MIN_PAIR_COUNT,
        initial_alphabet=BYTE_SYMBOLS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    _require(len(model["vocab"]) + 1, vocab_size)
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _require(reached: int, wanted: int) -> None:
    if reached < wanted:
        raise ValueError(
            f"the text yields only {reached - SMALLEST_VOCABULARY} merges, {reached} entries where "
            f"{wanted} are asked for: use a smaller vocab_size or transition, or more text."
        )


def _encoded_pieces(texts: Sequence[str], model: models.BPE) -> Counter[tuple[int, ...]]:
    """How often each piece of a line occurs, as the ids that the first stage makes of it.

    It is cut as the finished tokenizer will cut it, so that training sees what encoding will see.
    """
    cut = _within_lines()
    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(piece for piece, _ in cut.pre_tokenize_str(text))
    encodings = Tokenizer(model).encode_batch_fast(list(pieces))
    return Counter({tuple(e.ids): n for e, n in zip(encodings, pieces.values(), strict=True)})


def _learn_superwords(
    pieces: Counter[tuple[int, ...]], vocabulary: Vocabulary, merges: Merges, vocab_size: int
) -> None:
    """The second stage: append to `vocabulary` and `merges` until END_OF_TEXT fits exactly."""
    symbols = list(vocabulary)
    symbols.sort(key=vocabulary.__getitem__)

    def allowed(left: int, right: int) -> bool:
        return _keeps_the_rules(symbols[left] + symbols[right])

    pairs = _Pairs(pieces, vocab_size)
    while len(symbols) + 1 < vocab_size:
        pair = pairs.pop_most_frequent(allowed)
        if pair is None:
            break
        left, right = symbols[pair[0]], symbols[pair[1]]
        pairs.merge(*pair, into=len(symbols))
        vocabulary[left + right] = len(symbols)
        symbols.append(left + right)
        merges.append((left, right))
    _require(len(symbols) + 1, vocab_size)


def _keeps_the_rules(symbol: str) -> bool:
    text = decoders.ByteLevel().decode([symbol])
    return ": " not in text and len(text.split()) <= MAX_WORDS


class _Pairs:
    """All pairs of neighbours in a text of token ids, the most frequent first.

    Only one merge ever makes a given token, so once a pair is known it only grows rarer, and its
    known places only grow stale. Hence the heap holds upper bounds, and only a pair that comes to
    its top is counted again. No merge has to visit the pairs that it breaks.
    """

    def __init__(self, pieces: Counter[tuple[int, ...]], vocab_size: int):
        gap = [-1]  # before, between and after the pieces: no pair reaches across it
        flat, weight = gap.copy(), [0]
        for ids, count in pieces.items():
            flat += ids
            flat += gap
            weight += [count] * (len(ids) + 1)
        self.token = np.array(flat, dtype=np.int64)
        self.weight = np.array(weight, dtype=np.int64)
        self.next = np.arange(1, len(flat) + 1)
        self.previous = np.arange(-1, len(flat) - 1)
        self.base = vocab_size
        self.places: dict[int, np.ndarray] = {}
        self.heap: list[tuple[int, int]] = []
        self._add(np.arange(len(flat) - 1))

    def pop_most_frequent(self, allowed: Callable[[int, int], bool]) -> tuple[int, int] | None:
        """The most frequent allowed pair, of equals the one with the smallest ids."""
        while self.heap:
            bound, key = heapq.heappop(self.heap)
            pair = divmod(key, self.base)
            self.places[key] = self._still_there(*pair)
            count = int(self.weight[self.places[key]].sum())
            if count == -bound and allowed(*pair):
                return pair
            if MIN_PAIR_COUNT <= count < -bound:
                heapq.heappush(self.heap, (-count, key))
            else:
                del self.places[key]
        return None

    def merge(self, left: int, right: int, into: int) -> None:
        """Put `into`, an id never used before, in all places of the pair last popped."""
        first = self.places.pop(left * self.base + right)
        if left == right:
            first = _without_overlaps(first, self.next)
        second = self.next[first]
        after = self.next[second]
        self.token[first], self.token[second] = into, -1
        self.next[first], self.previous[after] = after, first
        before = self.previous[first]
        self._add(np.concatenate([before[self.token[before] != into], first]))

    def _still_there(self, left: int, right: int) -> np.ndarray:
        places = self.places[left * self.base + right]
        return places[(self.token[places] == left) & (self.token[self.next[places]] == right)]

    def _add(self, places: np.ndarray) -> None:
        """Count the pairs that begin at `places`, all of them new, and keep the frequent ones."""
        left, right = self.token[places], self.token[self.next[places]]
        inside = (left >= 0) & (right >= 0)
        keys, places = (left * self.base + right)[inside], places[inside]
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        ends = np.append(starts[1:], len(keys))
        counts = np.add.reduceat(self.weight[places], starts)
        for i in np.flatnonzero(counts >= MIN_PAIR_COUNT):
            key = int(keys[starts[i]])
            self.places[key] = places[starts[i] : ends[i]]
            heapq.heappush(self.heap, (-int(counts[i]), key))


def _without_overlaps(places: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Every other place of each run of places that follow one another: "aaa" is "aa" and "a"."""
    index = np.arange(len(places))
    in_run = np.append(False, following[places[:-1]] == places[1:])
    run_start = np.maximum.accumulate(np.where(in_run, 0, index))
    return places[(index - run_start) % 2 == 0]
