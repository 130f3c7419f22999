"""Text -> ids in bulk: exactly what the stock library gives, several times as fast.

To a superword tokenizer a whole document is one "word", so the stock library finds nothing to reuse. Two facts
about byte-pair encoding cut the work without changing one id:

- Merges apply in the order of their ranks, and up to some rank none joins a letter with the space or the
  punctuation after it. The text falls into atoms there (a word with what clings to it), whose ids up to that
  rank come from a table; the stock library fills the table, once for every new atom.
- A later merge joins two neighbours only if some vocabulary entry holds them side by side, and most neighbours
  stand together in none. What lies between such borders is a few tokens long, and all these stretches of a batch
  are merged at once, as arrays.

A tokenizer that never joins across a space (GPT-2's, plain BPE) needs the table only. One whose rules of cutting
are not known here to allow this is left to the stock library.
"""

import json
import re
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, Protocol

import numpy as np
import tokenizers
from tokenizers import models

MAX_DIGITS = 300
"""Longest run of digits handed to the library, whose split by threes is quadratic in it; a multiple of three."""
MAX_STRETCH = 256
"""Tokens of the longest stretch merged here; a text with a longer one goes to the stock library."""
MAX_TABLE_CHARACTERS = 40_000_000
"""Of the atoms in the table, which is then begun anew; some 600 MB of memory."""

_THREES = r"(?=(\d{3})+(?!\d))"
_LOCAL_PATTERNS = {
    _THREES,
    _THREES + r"| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"\p{N}{1,3}",
    r"\n+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Splits that divide an atom alone as they divide it in its text, as do Digits and the split of ByteLevel."""

_LONG_DIGITS = re.compile(rf"\d{{{MAX_DIGITS + 1},}}")
_NEUTRAL = " a"  # set between the atoms that are learned together: it merges with neither neighbour
_END, _BORDER, _GONE = -1, -2, -3
_NEVER = np.iinfo(np.int64).max
_SIEVE_BITS = 22

Pair = tuple[str, str]


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


def stock_encoder(library: tokenizers.Tokenizer, content: str) -> StockEncoder:
    """`library`, loaded from the tokenizer.json `content`, as an encoder."""
    return StockEncoder(library, guarded=json.dumps(_THREES).strip('"') in content)


def build_encoder(stock: StockEncoder, content: str, byte_lengths: np.ndarray) -> Encoder:
    """The fastest encoder that gives the ids of `stock`.

    Args:
        stock: the tokenizer; it treats special tokens in a text as text.
        content: its tokenizer.json.
        byte_lengths: (vocabulary,) bytes of text each id stands for.
    """
    description = json.loads(content)
    return AtomEncoder(stock, description, byte_lengths) if _cuts_locally(description) else stock


class AtomEncoder:
    """Ids from a table of atoms, then the merges that reach across them."""

    def __init__(self, stock: StockEncoder, description: dict[str, Any], byte_lengths: np.ndarray):
        vocabulary, merges = description["model"]["vocab"], _merges(description)
        within = next((rank for rank, pair in enumerate(merges) if _leaves_word(*pair)), len(merges))
        unsafe = _unsafe_ends(merges[:within])
        self._stock = stock
        self._added = [
            token.content for token in stock.library.get_added_tokens_decoder().values() if not token.special
        ]
        self._words = tokenizers.Tokenizer(models.BPE(vocabulary, merges[:within]))
        self._words.pre_tokenizer = stock.library.pre_tokenizer
        self._byte_lengths = byte_lengths.astype(np.int64)
        self._unsafe_end = re.compile(rf"[ {unsafe}]\Z")
        self._atoms = _atoms(unsafe)
        self._across = _Across(vocabulary, merges, within) if within < len(merges) else None
        self._table = _Table()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        atoms = list(chain.from_iterable(map(self._atoms.findall, texts)))  # an empty one ends every text
        rows = np.fromiter(map(self._table.__getitem__, atoms), np.int64, len(atoms))
        if self._table.unknown:
            self._table.learn(*self._learn(self._table.unknown))
        ids = self._table.ids(rows)
        self._table.trim()
        odd = {index for index, text in enumerate(texts) if any(added in text for added in self._added)}
        if self._across is not None:
            ids, too_long = self._across.merge(ids)
            odd |= set(np.searchsorted(np.flatnonzero(ids == _END), too_long).tolist())
        ids = ids[ids >= _END]
        ends = np.flatnonzero(ids == _END)
        return self._mended(ids[ids != _END], np.append(0, ends - np.arange(len(ends))), texts, odd)

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

    def _learn(self, atoms: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of atoms by the merges within words, with _BORDER where no merge may reach across.

        Returns:
            The ids, and where in them each atom begins and ends.
        """
        alone = np.fromiter(map(self._stands_alone, atoms), bool, len(atoms))
        together = [atom for atom, apart in zip(atoms, alone, strict=True) if not apart]
        ids, *spans = self._learn_together(together)
        rows = [self._learn_alone(atoms[index]) for index in np.flatnonzero(alone)]
        borders = np.cumsum([len(ids), *map(len, rows)])
        begins, ends = np.empty((2, len(atoms)), dtype=np.int64)
        begins[~alone], ends[~alone] = spans
        begins[alone], ends[alone] = borders[:-1], borders[1:]
        return np.concatenate([ids, *rows]), begins, ends

    def _stands_alone(self, atom: str) -> bool:
        """Whether neutral neighbours could merge with it, as it begins or ends a text, or it is too long."""
        odd_start = atom[0].isalnum() or not atom[0].isascii()
        return odd_start or len(atom) > MAX_DIGITS or self._unsafe_end.search(atom) is not None

    def _learn_alone(self, atom: str) -> np.ndarray:
        *pieces, last = self._stock.pieces(atom)
        rows = []
        for piece in pieces:
            ids, words = self._encoded(piece)
            rows += [_bordered(ids, words), np.array([_BORDER], dtype=np.int32)]
        suffix = "" if self._unsafe_end.search(last) else _NEUTRAL
        ids, words = self._encoded(last + suffix)
        kept = int((np.cumsum(self._byte_lengths[ids]) <= len(last.encode())).sum())
        rows.append(_bordered(ids[: kept + 1], words[: kept + 1]))
        return np.concatenate(rows)[: -1 if kept < len(ids) else None]

    def _learn_together(self, atoms: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids, words = self._encoded(_NEUTRAL + "".join(atom + _NEUTRAL for atom in atoms))
        ends = np.cumsum(self._byte_lengths[ids])
        sizes = np.fromiter((len(atom.encode()) for atom in atoms), np.int64, len(atoms))
        begin = np.cumsum(sizes + len(_NEUTRAL)) - sizes
        first, last = np.searchsorted(ends, begin, side="right"), np.searchsorted(ends, begin + sizes) + 1
        before = np.searchsorted(_changes(words), [first - 1, last], side="right")
        return _bordered(ids, words), first + before[0], last + before[1]

    def _encoded(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text by the merges within words, and the number of the pre-tokenizer's piece of each."""
        encoding = self._words.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32), np.array(encoding.word_ids, dtype=np.int64)


class _Table(dict):
    """Atom -> its row; `unknown` collects the atoms that got a row and no ids yet."""

    def __init__(self):
        super().__init__({"": 0})
        self.unknown: list[str] = []
        self._pool = np.array([_END], dtype=np.int32)
        self._begins, self._ends = np.array([0]), np.array([1])
        self._characters = 0

    def __missing__(self, atom: str) -> int:
        self[atom] = row = len(self)
        self.unknown.append(atom)
        return row

    def learn(self, ids: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
        """Give the unknown atoms, in their order, ids[begin:end]."""
        self._begins = np.append(self._begins, begins + len(self._pool))
        self._ends = np.append(self._ends, ends + len(self._pool))
        self._pool = np.append(self._pool, ids)
        self._characters += sum(map(len, self.unknown))
        self.unknown = []

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """The ids of all the rows end to end, (tokens,) int32."""
        lengths = self._ends[rows] - self._begins[rows]
        starts = np.cumsum(lengths) - lengths
        return self._pool[np.repeat(self._begins[rows] - starts, lengths) + np.arange(lengths.sum())]

    def trim(self) -> None:
        """Begin anew if full."""
        if self._characters > MAX_TABLE_CHARACTERS:
            self.clear()
            self.__init__()


class _Across:
    """The merges from rank `within` on, applied to the ids that the ranks before it give."""

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], within: int):
        pairs = np.array([(vocabulary[left], vocabulary[right]) for left, right in merges[within:]], dtype=np.int64)
        into = np.array([vocabulary[left + right] for left, right in merges[within:]], dtype=np.int64)
        order = np.argsort(_keys(*pairs.T))
        self._pairs, self._ranks, self._into = _keys(*pairs.T)[order], order, into
        first, last = np.arange(2 * (max(vocabulary.values()) + 1)).reshape(2, -1) % (max(vocabulary.values()) + 1)
        for (left, right), made in zip(pairs.tolist(), into.tolist(), strict=True):
            first[made], last[made] = first[left], last[right]
        self._touch = _Sieve(_keys(last[pairs[:, 0]], first[pairs[:, 1]]))
        self._listed = _Sieve(self._pairs)

    def merge(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`ids` with merged tokens in their places and _GONE in those that fell free.

        Returns:
            The ids, and positions in stretches too long to be merged here.
        """
        ids = ids.copy()
        touch = self._touch.may_hold(_keys(ids[:-1], ids[1:])) & (np.minimum(ids[:-1], ids[1:]) >= 0)
        touch = np.concatenate([[False], touch, [False]])  # whether a token touches the one before it
        place = np.flatnonzero(touch[:-1] | touch[1:])
        head = ~touch[place]
        sizes = np.diff(np.append(np.flatnonzero(head), len(head)))
        fits = np.repeat(sizes <= MAX_STRETCH, sizes)
        too_long = place[~fits]
        self._merge_stretches(ids, place[fits], head[fits])
        return ids, too_long

    def _merge_stretches(self, ids: np.ndarray, place: np.ndarray, head: np.ndarray) -> None:
        """In every round each stretch, begun by a head, loses its first pair of lowest rank, until none has any."""
        token = ids[place]
        rank = self._rank(token, head, np.arange(len(token)))
        while len(token):
            starts = np.flatnonzero(head)
            best = np.minimum.reduceat(rank, starts)
            sizes = np.diff(np.append(starts, len(token)))
            alive = np.repeat(best < _NEVER, sizes)
            place, token, rank, head, best = place[alive], token[alive], rank[alive], head[alive], best[best < _NEVER]
            if not len(token):
                return
            stretch = np.cumsum(head) - 1
            hits = np.flatnonzero(rank == best[stretch])
            left = hits[np.diff(stretch[hits], prepend=-1) != 0]
            token[left] = self._into[rank[left]]
            ids[place[left]], ids[place[left + 1]] = token[left], _GONE
            stay = np.ones(len(token), dtype=bool)
            stay[left + 1] = False
            place, token, rank, head = place[stay], token[stay], rank[stay], head[stay]
            merged = left - np.arange(len(left))
            before = merged[~head[merged]] - 1
            for changed in (merged, before):
                rank[changed] = self._rank(token, head, changed)

    def _rank(self, token: np.ndarray, head: np.ndarray, at: np.ndarray) -> np.ndarray:
        """The rank of the pairs that begin `at` these positions, _NEVER where there is none."""
        rank = np.full(len(at), _NEVER)
        after = at + 1
        paired = np.flatnonzero(after < len(token))
        paired = paired[~head[after[paired]]]
        keys = _keys(token[at[paired]], token[after[paired]])
        listed = self._listed.may_hold(keys)
        paired, keys = paired[listed], keys[listed]
        found = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        true = self._pairs[found] == keys
        rank[paired[true]] = self._ranks[found[true]]
        return rank


class _Sieve:
    """A set of keys that may take a stranger for a member, never a member for a stranger."""

    def __init__(self, keys: np.ndarray):
        self._marked = np.zeros(2**_SIEVE_BITS, dtype=bool)
        self._marked[self._slots(keys)] = True

    def may_hold(self, keys: np.ndarray) -> np.ndarray:
        return self._marked[self._slots(keys)]

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _SIEVE_BITS)


def _keys(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.astype(np.int64) << 32 | right


def _bordered(ids: np.ndarray, words: np.ndarray) -> np.ndarray:
    """`ids` with _BORDER wherever one piece of the pre-tokenizer ends and another begins."""
    return np.insert(ids, _changes(words), _BORDER)


def _changes(words: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(words)) + 1


def _atoms(unsafe: str) -> re.Pattern:
    """Matches the atoms of a text one after the other, and at its end an empty one.

    An atom ends between an ASCII letter and ASCII punctuation or white space, and before a space, unless one of
    the `unsafe` characters stands before that.
    """
    letters = r"[A-Za-z]++(?:[0-9\x80-\U0010ffff][^ A-Za-z]*+[A-Za-z]*+)*+"
    atom = rf" *+[^ A-Za-z]*+(?:{letters})?+"
    return re.compile(rf"{atom}(?:(?<=[{unsafe}]){atom})*+" if unsafe else atom)


def _unsafe_ends(merges: list[Pair]) -> str:
    """The characters that a merge joins with a following space, as the inside of a regular expression's class."""
    ends = set()
    for left, right in merges:
        if _BYTES[right[0]] == ord(" ") != _BYTES[left[-1]]:
            end = bytes(_BYTES[symbol] for symbol in left).decode(errors="replace")[-1]
            ends.add(r"\x80-\U0010ffff" if end == "\ufffd" else re.escape(end))
    return "".join(sorted(ends))


def _leaves_word(left: str, right: str) -> bool:
    """Whether a merge joins an ASCII letter with a following space, punctuation or control character."""
    following = chr(_BYTES[right[0]])
    return left[-1].isascii() and left[-1].isalpha() and following.isascii() and not following.isalnum()


def _merges(description: dict[str, Any]) -> list[Pair]:
    return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in description["model"]["merges"]]


def _cuts_locally(description: dict[str, Any]) -> bool:
    """Whether a tokenizer.json divides and merges in the ways that this module's reasoning holds for."""
    model = description["model"]
    unusual = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return (
        model["type"] == "BPE"
        and not any(model.get(key) for key in (*unusual, "ignore_merges"))
        and description["normalizer"] is None
        and _is_local(description["pre_tokenizer"])
        and model["vocab"].keys() >= {symbol for symbol, byte in _BYTES.items() if byte in _UTF8}
        and _is_ordered(_merges(description))
    )


def _is_local(pre_tokenizer: dict[str, Any] | None) -> bool:
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*splits, {"type": "ByteLevel"} as last]}:
            return all(map(_is_local, splits)) and _is_local(last)
        case {"type": "Split", "pattern": {"Regex": pattern}, "invert": False}:
            return pattern in _LOCAL_PATTERNS
        case {"type": "ByteLevel", "add_prefix_space": adds_space}:
            return not adds_space
        case {"type": "Digits"}:
            return True
    return False


def _is_ordered(merges: list[Pair]) -> bool:
    """Whether every merge joins what exists by then, and no two make the same token."""
    made = set(_BYTES)
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


_BYTES = _byte_symbols()
_UTF8 = {*range(0xC0), *range(0xC2, 0xF5)}
