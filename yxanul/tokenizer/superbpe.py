"""Train a SuperBPE tokenizer: byte-level BPE first within words, then across spaces.

Superwords (" of the", " is not None:") put an eighth more text into a token at 8192 entries, a
third at 200,000, so that a run sees more bytes in as many steps. The stock trainer can neither
continue from given merges nor refuse one: it learns the words, this module the superwords. The
result is an ordinary tokenizer.json, and whoever loads it needs nothing of ours; `annotated` writes
into it how it was made.

Source of the method and of its two rules: SuperBPE, arXiv 2503.13423.
"""

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps

END_OF_TEXT = "<|endoftext|>"
MAX_WORDS = 4
COLON = ": "
# A pair seen once is a memory of one place, not a regularity of the language.
MIN_PAIR_COUNT = 2

BYTE_SYMBOLS = sorted(ByteLevel.alphabet())
SMALLEST_VOCABULARY = len(BYTE_SYMBOLS) + 1

# In bytes. The stock trainer takes time quadratic in a word, so that it learns from a longer one (a
# ruler of dashes, base64) as from several.
LONGEST_WORD_LEARNED = 1000
# Enough to keep all cores busy; the library's encodings of a whole corpus would fill gigabytes.
_PIECES_AT_ONCE = 10_000
_GAP = -1

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
Progress = Callable[[str, float], None]
Item = TypeVar("Item")


def _unwatched(stage: str, done: float) -> None:
    pass


def train_bpe(texts: Sequence[str], vocab_size: int, progress: Progress = _unwatched) -> Tokenizer:
    """Plain byte-level BPE within words: what a SuperBPE tokenizer is to be compared with.

    The vocabulary has exactly `vocab_size` entries: the 256 byte symbols, the merges, and
    END_OF_TEXT, which is the last id (`vocab_size` - 1). Any text is encoded without loss. The
    same texts in the same order give the same tokenizer. Raises ValueError if `vocab_size` cannot
    hold the bytes or `texts` are too few to fill it.

    `progress` is called now and then, perhaps from another thread, with what is being done ("words",
    the share of texts read; then "word merges", of which only begin and end are known) and the share
    of it that is done, from 0 to 1.
    """
    vocabulary, merges = _learn_words(texts, vocab_size, progress)
    return _assemble(vocabulary, merges, _within_words())


def train_superbpe(
    texts: Sequence[str], vocab_size: int, transition: int, progress: Progress = _unwatched
) -> Tokenizer:
    """SuperBPE (arXiv 2503.13423): words up to `transition` entries, superwords to `vocab_size`.

    The vocabulary is as in `train_bpe`; both sizes count all entries, END_OF_TEXT among them, so
    `transition == vocab_size` learns no superword. A superword stays within a line, has at most
    MAX_WORDS words and never holds a colon followed by a space. Raises ValueError as `train_bpe`
    does, and if `transition` exceeds `vocab_size`.

    `progress` is as in `train_bpe`; "cutting", "encoding" and "superwords" follow the words. A corpus
    of 80 MB takes a minute and 2 GB of memory on two cores.
    """
    if transition > vocab_size:
        raise ValueError(f"transition {transition} exceeds vocab_size {vocab_size}: use at most that.")
    vocabulary, merges = _learn_words(texts, transition, progress)
    pieces = _cut(texts, progress)
    pairs = _Pairs(*_encode(pieces, models.BPE(vocab=vocabulary, merges=merges), progress), vocab_size)
    _learn_superwords(pairs, vocabulary, merges, vocab_size, progress)
    return _assemble(vocabulary, merges, _within_lines())


def recipe(texts: Sequence[str], vocab_size: int, transition: int | None) -> dict[str, Any]:
    """How `train_superbpe`, or without a `transition` `train_bpe`, makes a tokenizer of `texts`: values of JSON.

    Gives the kind and sizes, the rules, the documents and their bytes of UTF-8, and the library, but not
    what the texts are: that the caller knows.
    """
    rules = {"words": _WORDS, "least_pair_count": MIN_PAIR_COUNT, "longest_word_learned_bytes": LONGEST_WORD_LEARNED}
    if transition is not None:
        rules |= {
            "line_breaks": _LINE_BREAKS,
            "numbers": _NUMBERS,
            "superword_max_words": MAX_WORDS,
            "superword_never_holds": COLON,
        }
    return {
        "kind": "bpe" if transition is None else "superbpe",
        "vocab_size": vocab_size,
        "transition": transition,
        "rules": rules,
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "library": f"tokenizers {tokenizers.__version__}",
    }


def annotated(tokenizer: Tokenizer, record: Mapping[str, Any]) -> str:
    """The tokenizer.json of `tokenizer` with `record` in it; the stock library loads the same tokenizer from it.

    `record` must consist of values of JSON (else TypeError); `training_record` reads it back.
    """
    content = json.loads(tokenizer.to_str())
    # The library refuses keys it does not know in all places but this.
    content["model"] = {"training": dict(record), **content["model"]}
    return json.dumps(content, ensure_ascii=False, indent=2)


def training_record(content: str) -> dict[str, Any] | None:
    """What `annotated` wrote into the tokenizer.json `content`; None if it is another's.

    Raises json.JSONDecodeError if it is no JSON.
    """
    return json.loads(content).get("model", {}).get("training")


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


def _learn_words(texts: Sequence[str], vocab_size: int, progress: Progress) -> tuple[Vocabulary, Merges]:
    """The first stage: `vocab_size` - 1 entries, leaving the last id to END_OF_TEXT."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"{vocab_size} entries cannot hold 256 bytes and {END_OF_TEXT}: use more.")
    tokenizer = Tokenizer(models.BPE())
    bounded = Split(Regex(f".{{{LONGEST_WORD_LEARNED}}}"), "isolated")
    tokenizer.pre_tokenizer = Steps([_within_words(), bounded])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=MIN_PAIR_COUNT,
        initial_alphabet=BYTE_SYMBOLS,
        show_progress=False,
    )

    def read() -> Iterator[str]:
        yield from _watched(texts, "words", progress)
        progress("word merges", 0.0)

    tokenizer.train_from_iterator(read(), trainer)
    progress("word merges", 1.0)
    model = json.loads(tokenizer.to_str())["model"]
    _require(len(model["vocab"]) + 1, vocab_size)
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _watched(items: Sequence[Item], stage: str, progress: Progress) -> Iterator[Item]:
    """The items, with a word to `progress` at every hundredth of them."""
    step = max(1, len(items) // 100)
    for i, item in enumerate(items):
        if i % step == 0:
            progress(stage, i / len(items))
        yield item
    progress(stage, 1.0)


def _require(reached: int, wanted: int) -> None:
    if reached < wanted:
        raise ValueError(
            f"the text yields only {reached - SMALLEST_VOCABULARY} merges, {reached} entries where "
            f"{wanted} are asked for: use a smaller vocab_size or transition, or more text."
        )


def _cut(texts: Sequence[str], progress: Progress) -> Counter[str]:
    """How often each piece of a line occurs.

    It is cut as the finished tokenizer will cut it, so that training sees what encoding will see.
    """
    cut = _within_lines()
    pieces: Counter[str] = Counter()
    for text in _watched(texts, "cutting", progress):
        pieces.update(piece for piece, _ in cut.pre_tokenize_str(text))
    return pieces


def _encode(pieces: Counter[str], model: models.BPE, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """The ids that the first stage makes of the pieces, and how often each id's piece occurs.

    _GAP stands before, between and after the pieces: no pair reaches across it.
    """
    encoder = Tokenizer(model)
    distinct = list(pieces)
    ids, lengths = array("i", [_GAP]), [1]
    for start in _watched(range(0, len(distinct), _PIECES_AT_ONCE), "encoding", progress):
        for encoding in encoder.encode_batch_fast(distinct[start : start + _PIECES_AT_ONCE]):
            ids.extend(encoding.ids)
            ids.append(_GAP)
            lengths.append(len(encoding) + 1)
    return np.frombuffer(ids, dtype=np.int32), np.repeat([0, *pieces.values()], lengths)


def _learn_superwords(
    pairs: "_Pairs", vocabulary: Vocabulary, merges: Merges, vocab_size: int, progress: Progress
) -> None:
    """The second stage: append to `vocabulary` and `merges` until END_OF_TEXT fits exactly."""
    symbols = list(vocabulary)
    symbols.sort(key=vocabulary.__getitem__)

    def allowed(left: int, right: int) -> bool:
        return _keeps_the_rules(symbols[left] + symbols[right])

    for new in _watched(range(len(symbols), vocab_size - 1), "superwords", progress):
        pair = pairs.pop_most_frequent(allowed)
        if pair is None:
            break
        left, right = symbols[pair[0]], symbols[pair[1]]
        pairs.merge(*pair, into=new)
        vocabulary[left + right] = new
        symbols.append(left + right)
        merges.append((left, right))
    _require(len(symbols) + 1, vocab_size)


def _keeps_the_rules(symbol: str) -> bool:
    text = decoders.ByteLevel().decode([symbol])
    return COLON not in text and len(text.split()) <= MAX_WORDS


class _Pairs:
    """All pairs of neighbours in a text of token ids, the most frequent first.

    Only one merge ever makes a given token, so once a pair is known it only grows rarer, and its
    known places only grow stale. Hence the heap holds upper bounds, and only a pair that comes to
    its top is counted again. No merge has to visit the pairs that it breaks.
    """

    def __init__(self, token: np.ndarray, weight: np.ndarray, vocab_size: int):
        """`token` (which is changed) and `weight` are what `_encode` returns."""
        self.token = token
        self.weight = weight
        place = np.int32 if len(token) < 2**31 else np.int64
        self.next = np.arange(1, len(token) + 1, dtype=place)
        self.previous = np.arange(-1, len(token) - 1, dtype=place)
        self.base = vocab_size
        self.places: dict[int, np.ndarray] = {}
        self.heap: list[tuple[int, int]] = []
        self._add(np.arange(len(token) - 1, dtype=place))

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
        self.token[first], self.token[second] = into, _GAP
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
        places = places[inside]
        keys = left[inside].astype(np.int64) * self.base + right[inside]
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
