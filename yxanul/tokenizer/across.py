"""The merges that reach across words, applied to a whole batch of texts at once.

What merges before them has given each text as ids. A later merge joins two neighbours only if some vocabulary entry
holds them side by side, and most neighbours stand together in none. Between such borders lie stretches of a few
tokens; in each of them the merges are applied one by one in the order of their ranks, and in all of them together,
as arrays.
"""

import numpy as np

MAX_STRETCH = 256
"""Tokens of the longest stretch merged here; a longer one is a pathology, and quadratic."""
GONE = -3
"""In the place of a token that was merged into the one before it."""
_NEVER = np.iinfo(np.int32).max
_SIEVE_BITS, _SLOT_BITS = 22, 20


class Across:
    """The merges from rank `within` on, applied to the ids that the ranks before it give."""

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], within: int):
        pairs = np.array([(vocabulary[left], vocabulary[right]) for left, right in merges[within:]], dtype=np.int64)
        into = np.array([vocabulary[left + right] for left, right in merges[within:]], dtype=np.int64)
        order = np.argsort(_keys(*pairs.T))
        self._pairs, self._ranks = _keys(*pairs.T)[order], order.astype(np.int32)
        self._into = into.astype(np.int32)
        first, last = _ends(pairs[:, 0], into), _ends(pairs[:, 1], into)
        self._touch = _Sieve(_keys(last[pairs[:, 0]], first[pairs[:, 1]]))
        self._listed = _Sieve(self._pairs)
        self._slot = np.zeros(2**_SLOT_BITS, dtype=np.int32)
        self._slot[_hashed(self._pairs, _SLOT_BITS)] = np.arange(len(self._pairs))

    def merge(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`ids` with merged tokens in their places and GONE in those that fell free.

        Returns:
            The ids, and positions in stretches too long to be merged here.
        """
        ids = ids.copy()
        touch = self._touch.may_hold(_keys(ids[:-1], ids[1:])) & (np.minimum(ids[:-1], ids[1:]) >= 0)
        touch = np.concatenate([[False], touch, [False]])  # whether a token touches the one before it
        place = np.flatnonzero(touch[:-1] | touch[1:]).astype(np.int32)
        head = ~touch[place]
        sizes = np.diff(np.append(np.flatnonzero(head), len(head)))
        sizes = np.repeat(sizes, sizes)
        self._merge_pairs(ids, place[(sizes == 2) & head])
        longer = (sizes > 2) & (sizes <= MAX_STRETCH)
        self._merge_stretches(ids, place[longer], head[longer])
        return ids, place[sizes > MAX_STRETCH]

    def _merge_pairs(self, ids: np.ndarray, left: np.ndarray) -> None:
        """Most stretches are two tokens long."""
        rank = self._ranks_of(_keys(ids[left], ids[left + 1]))
        merged = rank < _NEVER
        left = left[merged]
        ids[left], ids[left + 1] = self._into[rank[merged]], GONE

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
            stretch = np.cumsum(head, dtype=np.int32) - 1
            hits = np.flatnonzero(rank == best[stretch])
            left = hits[np.diff(stretch[hits], prepend=-1) != 0]
            token[left] = self._into[rank[left]]
            ids[place[left]], ids[place[left + 1]] = token[left], GONE
            stay = np.ones(len(token), dtype=bool)
            stay[left + 1] = False
            place, token, rank, head = place[stay], token[stay], rank[stay], head[stay]
            merged = left - np.arange(len(left))
            before = merged[~head[merged]] - 1
            for changed in (merged, before):
                rank[changed] = self._rank(token, head, changed)

    def _rank(self, token: np.ndarray, head: np.ndarray, at: np.ndarray) -> np.ndarray:
        """The rank of the pairs that begin `at` these positions, _NEVER where there is none."""
        rank = np.full(len(at), _NEVER, dtype=np.int32)
        after = at + 1
        paired = np.flatnonzero(after < len(token))
        paired = paired[~head[after[paired]]]
        rank[paired] = self._ranks_of(_keys(token[at[paired]], token[after[paired]]))
        return rank

    def _ranks_of(self, keys: np.ndarray) -> np.ndarray:
        """The rank of each pair of tokens, _NEVER for those that do not merge."""
        rank = np.full(len(keys), _NEVER, dtype=np.int32)
        listed = np.flatnonzero(self._listed.may_hold(keys))
        keys = keys[listed]
        found = self._slot[_hashed(keys, _SLOT_BITS)]
        other = np.flatnonzero(self._pairs[found] != keys)  # of the same slot, or not listed at all
        found[other] = np.minimum(np.searchsorted(self._pairs, keys[other]), len(self._pairs) - 1)
        true = self._pairs[found] == keys
        rank[listed[true]] = self._ranks[found[true]]
        return rank


def _ends(parts: np.ndarray, into: np.ndarray) -> np.ndarray:
    """For each id the one at an end of it, found by going from what is made, `into`, to its part at that end."""
    ends = np.arange(max(parts.max(), into.max()) + 1)
    while (ends[into] != ends[parts]).any():
        ends[into] = ends[parts]
    return ends


class _Sieve:
    """A set of keys that may take a stranger for a member, never a member for a stranger."""

    def __init__(self, keys: np.ndarray):
        self._marked = np.zeros(2**_SIEVE_BITS, dtype=bool)
        self._marked[_hashed(keys, _SIEVE_BITS)] = True

    def may_hold(self, keys: np.ndarray) -> np.ndarray:
        return self._marked[_hashed(keys, _SIEVE_BITS)]


def _hashed(keys: np.ndarray, bits: int) -> np.ndarray:
    """Fibonacci hashing."""
    return (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits)


def _keys(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.astype(np.int64) << 32 | right
