"""Text -> ids in bulk: exactly what the stock library gives, several times as fast.

To a superword tokenizer a whole document is one "word", so the stock library finds nothing to reuse. Two facts
about byte-pair encoding cut the work without changing one id:

- Merges apply in the order of their ranks, and up to some rank none joins a letter with the space or the
  punctuation after it. The text falls into atoms between such characters, mostly words, whose ids up to that rank
  come from a table; the stock library fills the table, once for every new atom.
- A later merge joins two neighbours only if some vocabulary entry holds them side by side, and most neighbours
  stand together in none. What lies between such borders is a few tokens long, and all these stretches of a batch
  are merged at once, as arrays.

A tokenizer that never joins across a space (GPT-2's, plain BPE) needs the table only. One whose rules of cutting
are not known here to allow this is left to the stock library.
"""

import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow
import tokenizers
from tokenizers import models

from yxanul.tokenizer.across import Across

MAX_DIGITS = 300
"""Longest run of digits handed to the library, whose split by threes is quadratic in it; a multiple of three."""
MAX_TABLE_BYTES = 20_000_000
"""Of the atoms in the table, which is then begun anew; some 600 MB of memory."""

_THREES = r"(?=(\d{3})+(?!\d))"
_RUNS = {_THREES, r"\p{N}{1,3}", r"\n+"}
"""Splits that look at nothing but a run of digits or of line breaks, as does Digits."""
_WORDS = {
    _THREES + r"| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Splits into words, as that of ByteLevel: a text cut after a word or before a space is divided as before."""

_LONG_DIGITS = re.compile(rf"\d{{{MAX_DIGITS + 1},}}")
_NEUTRAL = (" a", " a\n", "a")
"""What may be set between atoms that are learned together, where it merges with neither neighbour."""
_END, _BORDER = -1, -2

Pair = tuple[str, str]


Item = TypeVar("Item")


class Encoder(Protocol):
    """Encodes many texts at once."""

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts end to end, (tokens,) int32, and where each begins, (texts + 1,) int64."""


class StockEncoder:
    """The stock library, kept from long runs of digits if `guarded`."""

    def __init__(self, library: tokenizers.Tokenizer, guarded: bool):
        self.library = library
        self._guarded = guarded

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        pieces = [self.pieces(text) for text in texts]
        encodings = self.library.encode_batch_fast(list(chain.from_iterable(pieces)), add_special_tokens=False)
        ends = np.array([0, *accumulate(map(len, encodings))], dtype=np.int64)
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, ends[-1])
        return ids, ends[list(accumulate(map(len, pieces), initial=0))]

    def pieces(self, text: str) -> list[str]:
        """`text`, long runs of digits cut where the tokenizer divides them anyway: by threes from their end."""
        cuts = [0]
        for run in _LONG_DIGITS.finditer(text) if self._guarded else ():
            cuts += range(run.start() + len(run[0]) % 3, run.end(), MAX_DIGITS)
        return [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def batches(items: Iterable[Item], characters: int, length: Callable[[Item], int] = len) -> Iterator[list[Item]]:
    """Lists of `items` of about that many characters, as much as is well encoded at once."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += length(item)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def num_bytes(text: str) -> int:
    """Of UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def stock_encoder(library: tokenizers.Tokenizer, description: dict[str, Any]) -> StockEncoder:
    """`library`, loaded from a tokenizer.json that says `description`, as an encoder."""
    return StockEncoder(library, guarded=json.dumps(_THREES).strip('"') in json.dumps(description.get("pre_tokenizer")))


def build_encoder(stock: StockEncoder, description: dict[str, Any], byte_lengths: np.ndarray) -> Encoder:
    """The fastest encoder that gives the ids of `stock`.

    Args:
        stock: the tokenizer; it treats special tokens in a text as text.
        description: what its tokenizer.json says.
        byte_lengths: (vocabulary,) bytes of text each id stands for.
    """
    return AtomEncoder(stock, description, byte_lengths) if _can_be_cut(description) else stock


class AtomEncoder:
    """Ids from a table of atoms, then the merges that reach across them."""

    def __init__(self, stock: StockEncoder, description: dict[str, Any], byte_lengths: np.ndarray):
        vocabulary, merges = description["model"]["vocab"], _merges(description)
        within = _within_words(merges)
        added = stock.library.get_added_tokens_decoder().values()
        self._stock = stock
        self._added = [token.content for token in added if not token.special]
        self._words = tokenizers.Tokenizer(models.BPE(vocabulary, merges[:within]))
        self._words.pre_tokenizer = stock.library.pre_tokenizer
        self._byte_lengths = byte_lengths.astype(np.int64)
        self._parts = _borders(merges[:within], superwords=within < len(merges))
        self._across = Across(vocabulary, merges, within) if within < len(merges) else None
        self._table = _Table()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        atoms, ends = self._atoms(texts)
        rows = np.array(list(map(self._table.__getitem__, atoms.dictionary.to_pylist())), dtype=np.int64)
        if self._table.unknown:
            self._table.learn(*self._learn(self._table.unknown))
        ids = self._table.ids(np.insert(rows[atoms.indices.to_numpy()], ends, self._table.END_ROW))
        self._table.trim()
        odd = {index for index, text in enumerate(texts) if any(added in text for added in self._added)}
        if self._across is not None:
            ids, too_long = self._across.merge(ids)
            odd |= set(np.searchsorted(np.flatnonzero(ids == _END), too_long).tolist())
        ids = ids[ids >= _END]
        ends = np.flatnonzero(ids == _END)
        return self._mended(ids[ids != _END], np.append(0, ends - np.arange(len(ends))), texts, odd)

    def _atoms(self, texts: Sequence[str]) -> tuple[pyarrow.DictionaryArray, np.ndarray]:
        """The atoms of all texts, each different one once, and how many there are up to the end of each text."""
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([0, *map(len, encoded)])
        joined = b"".join(encoded)
        data, kinds = np.frombuffer(joined, np.uint8), np.frombuffer(joined.translate(_KINDS), np.uint8)
        before = np.flatnonzero(kinds[1:] != kinds[:-1])  # of the places where a cut may be
        cuts = before[self._parts[data[before], data[before + 1]]] + 1
        offsets = np.insert(cuts, np.searchsorted(cuts, ends), ends)
        offsets = offsets[np.diff(offsets, prepend=-1) > 0]
        buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data)]
        atoms = pyarrow.Array.from_buffers(pyarrow.large_binary(), len(offsets) - 1, buffers)
        return atoms.dictionary_encode(), np.searchsorted(offsets, ends[1:])

    def _mended(
        self, ids: np.ndarray, offsets: np.ndarray, texts: Sequence[str], odd: set[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same with the texts numbered `odd` encoded by the stock library."""
        if not odd:
            return ids, offsets
        documents = np.split(ids, offsets[1:-1])
        for index in odd:
            documents[index] = self._stock.encode([texts[index]])[0]
        return np.concatenate(documents), np.append(0, np.cumsum([len(document) for document in documents]))

    def _learn(self, atoms: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of atoms by the merges within words, with _BORDER where no merge may reach across.

        Returns:
            The ids, and where in them each atom begins and ends.
        """
        kinds = self._neutral(atoms)
        begins, ends = np.empty((2, len(atoms)), dtype=np.int64)
        rows, size = [], 0
        for kind, neutral in enumerate(_NEUTRAL):
            members = np.flatnonzero(kinds == kind)
            ids, first, last = self._learn_together([atoms[index] for index in members], neutral.encode())
            begins[members], ends[members] = first + size, last + size
            rows.append(ids)
            size += len(ids)
        for index in np.flatnonzero(kinds == len(_NEUTRAL)):
            rows.append(self._learn_alone(atoms[index].decode()))
            begins[index], ends[index] = size, size + len(rows[-1])
            size = ends[index]
        return np.concatenate(rows), begins, ends

    def _neutral(self, atoms: list[bytes]) -> np.ndarray:
        """Of each atom the number of the neutral text that it can stand between; len(_NEUTRAL) if there is none."""
        first, last, size = np.array([(atom[0], atom[-1], len(atom)) for atom in atoms]).T
        fits = [
            self._parts[neutral.encode()[-1], first] & self._parts[last, neutral.encode()[0]] & (size <= MAX_DIGITS)
            for neutral in _NEUTRAL
        ]
        return np.argmax([*fits, np.ones(len(atoms), dtype=bool)], axis=0)

    def _learn_alone(self, atom: str) -> np.ndarray:
        *pieces, last = self._stock.pieces(atom)
        rows = []
        for piece in pieces:
            ids, words = self._encoded(piece)
            rows += [_bordered(ids, words), np.array([_BORDER], dtype=np.int32)]
        end = last.encode()[-1]
        suffix = next((neutral for neutral in _NEUTRAL if self._parts[end, neutral.encode()[0]]), "")
        ids, words = self._encoded(last + suffix)
        kept = int((np.cumsum(self._byte_lengths[ids]) <= len(last.encode())).sum())
        rows.append(_bordered(ids[: kept + 1], words[: kept + 1]))
        return np.concatenate(rows)[: -1 if kept < len(ids) else None]

    def _learn_together(self, atoms: list[bytes], neutral: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids, words = self._encoded((neutral + b"".join(atom + neutral for atom in atoms)).decode())
        ends = np.cumsum(self._byte_lengths[ids])
        sizes = np.fromiter(map(len, atoms), np.int64, len(atoms))
        begin = np.cumsum(sizes + len(neutral)) - sizes
        first, last = np.searchsorted(ends, begin, side="right"), np.searchsorted(ends, begin + sizes) + 1
        before = np.searchsorted(_changes(words), [first - 1, last], side="right")
        return _bordered(ids, words), first + before[0], last + before[1]

    def _encoded(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text by the merges within words, and the number of the pre-tokenizer's piece of each."""
        encoding = self._words.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32), np.array(encoding.word_ids, dtype=np.int64)


class _Table(dict):
    """Atom -> its row; `unknown` collects the atoms that got a row and no ids yet."""

    END_ROW = 0

    def __init__(self):
        super().__init__({b"": self.END_ROW})
        self.unknown: list[bytes] = []
        self._pool = np.array([_END], dtype=np.int32)
        self._begins, self._ends = np.array([0]), np.array([1])
        self._bytes = 0

    def __missing__(self, atom: bytes) -> int:
        self[atom] = row = len(self)
        self.unknown.append(atom)
        return row

    def learn(self, ids: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
        """Give the unknown atoms, in their order, ids[begin:end]."""
        self._begins = np.append(self._begins, begins + len(self._pool))
        self._ends = np.append(self._ends, ends + len(self._pool))
        self._pool = np.append(self._pool, ids)
        self._bytes += sum(map(len, self.unknown))
        self.unknown = []

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """The ids of all the rows end to end, (tokens,) int32."""
        lengths = self._ends[rows] - self._begins[rows]
        starts = np.cumsum(lengths) - lengths
        return self._pool[np.repeat(self._begins[rows] - starts, lengths) + np.arange(lengths.sum())]

    def trim(self) -> None:
        """Begin anew if full."""
        if self._bytes > MAX_TABLE_BYTES:
            self.clear()
            self.__init__()


def _bordered(ids: np.ndarray, words: np.ndarray) -> np.ndarray:
    """`ids` with _BORDER wherever one piece of the pre-tokenizer ends and another begins."""
    return np.insert(ids, _changes(words), _BORDER)


def _changes(words: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(words)) + 1


def _borders(merges: list[Pair], superwords: bool) -> np.ndarray:
    """Between which two bytes a text may be cut into atoms, (256, 256) bool, [before, after].

    No merge may join the two, and no split may look past the cut: a run of digits or white space stays whole, and
    so does what holds characters beyond ASCII. Where `superwords` leave the splitting to _RUNS, that is all; where
    _WORDS look at a word with what clings to it, cuts come after letters and before spaces only.
    """
    kinds = np.frombuffer(_KINDS, np.uint8)
    parts = (kinds != _BEYOND)[:, None] & (kinds != _BEYOND)
    if not superwords:
        parts &= (kinds == _LETTER)[:, None] & (kinds != _DIGIT)
    parts[:, ord(" ")] = True
    parts &= kinds[:, None] != kinds
    for left, right in merges:
        parts[BYTE_OF[left[-1]], BYTE_OF[right[0]]] = False
    return parts


def _kind(byte: int) -> int:
    character = chr(byte)
    if not character.isascii():
        return _BEYOND
    if character.isspace():
        return _SPACE
    return _LETTER if character.isalpha() else _DIGIT if character.isdigit() else _MARK


_BEYOND, _SPACE, _LETTER, _DIGIT, _MARK = range(5)
_KINDS = bytes(map(_kind, range(256)))


def _within_words(merges: list[Pair]) -> int:
    """The first rank that joins an ASCII letter with a following space, punctuation or control character."""
    marks = {symbol for symbol, byte in BYTE_OF.items() if byte < 0x80 and not chr(byte).isalnum()}
    letters = set(string.ascii_letters)
    crossing = (rank for rank, (left, right) in enumerate(merges) if left[-1] in letters and right[0] in marks)
    return next(crossing, len(merges))


def _merges(description: dict[str, Any]) -> list[Pair]:
    return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in description["model"]["merges"]]


def _can_be_cut(description: dict[str, Any]) -> bool:
    """Whether a tokenizer.json divides and merges in the ways that this module's reasoning holds for."""
    model, merges = description["model"], _merges(description)
    unusual = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    splits = _RUNS if _within_words(merges) < len(merges) else _RUNS | _WORDS
    return (
        not any(model.get(key) for key in (*unusual, "ignore_merges"))
        and description.get("normalizer") is None
        and _is_known(description.get("pre_tokenizer"), splits)
        and model["vocab"].keys() >= {symbol for symbol, byte in BYTE_OF.items() if byte in _UTF8}
        and _is_ordered(merges)
    )


def _is_known(pre_tokenizer: dict[str, Any] | None, splits: set[str]) -> bool:
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel"} as last]}:
            return all(_is_known(step, splits) for step in steps) and _is_known(last, splits)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return pattern in splits
        case {"type": "Split", "pattern": {"Regex": r"\n+"}, "behavior": "MergedWithNext", "invert": False}:
            return True
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return not use_regex or splits >= _WORDS
        case {"type": "Digits"}:
            return True
    return False


def _is_ordered(merges: list[Pair]) -> bool:
    """Whether every merge joins what exists by then, and no two make the same token."""
    made = set(BYTE_OF)
    for left, right in merges:
        if left not in made or right not in made or left + right in made:
            return False
        made.add(left + right)
    return True


def _byte_symbols() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _byte_symbols()
_UTF8 = {*range(0xC0), *range(0xC2, 0xF5)}
