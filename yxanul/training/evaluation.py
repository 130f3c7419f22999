"""Bits per byte of held-out text with the full context, whatever length the curriculum is at.

Every document begins with the end-of-text token, so that its first token is predicted too, and every byte is
scored exactly once. A document longer than the context is read in windows that overlap by half, so a token in
it never has less than half a context of text before it. Windows of several documents share a packed row.

A context may be counted in bytes too: as many tokens of a coarser tokenizer see more text, and runs with different
tokenizers are compared fairly only where each sees the same.
"""

import gzip
import hashlib
import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from yxanul.model.attention import Attention
from yxanul.model.transformer import Packed
from yxanul.tokenizer.load import Tokenizer


class TokenLosses(Protocol):
    """What is evaluated: a `Transformer`, or another that predicts a packed row."""

    def token_losses(self, packed: Packed, targets: Tensor, rows: Tensor) -> Tensor:
        """The negative log-likelihood in nats of the targets (rows,) that follow positions `rows` of the packed row."""


@dataclass(frozen=True)
class Row:
    """Windows packed into one row of at most `context` tokens; `scored` says which targets count, each once."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    starts: list[int]
    scored: np.ndarray

    def inputs(self, context: int, device: torch.device, attention: Attention) -> tuple[Packed, Tensor, Tensor]:
        """What a model reads, and the targets (scored,) that count with the positions that they follow, (scored,)."""
        packed = Packed(
            torch.from_numpy(self.tokens),
            torch.from_numpy(self.positions),
            attention(self.starts, len(self.tokens), context),
        ).map(lambda tensor: tensor.to(device))
        scored = self.scored.nonzero()[0]
        targets, rows = (torch.from_numpy(each).to(device) for each in (self.targets[scored], scored))
        return packed, targets, rows


@dataclass(frozen=True)
class HeldOut:
    """Held-out text made ready: its rows, its size and what the classic compressors make of it (bits per byte).

    Attributes:
        documents: (tokens,) int64, which document each scored token is of, in the order of the rows.
        sizes: (tokens,) int64, its bytes.
    """

    rows: list[Row]
    context: int
    tokens: int
    bytes: int
    name: str  # a hash of the text, and its context: what else has this name is judged on the same
    gzip_bits_per_byte: float
    xz_bits_per_byte: float
    documents: np.ndarray
    sizes: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """(tokens,) int64, how many tokens each scored token is predicted from."""
        return 1 + np.concatenate([row.positions[row.scored] for row in self.rows])


@dataclass(frozen=True)
class Part:
    """Of a share of the text, how much it is and how well it is predicted."""

    name: str
    tokens: int
    bytes: int
    bits_per_byte: float


@dataclass(frozen=True)
class Score:
    """Bits per byte, and the perplexity per token (not comparable across tokenizers)."""

    bits_per_byte: float
    perplexity: float
    by_position: list[Part] = field(default_factory=list)  # by the number of tokens before, in powers of two


def held_out(texts: Sequence[str], tokenizer: Tokenizer, context: int, context_bytes: int | None = None) -> HeldOut:
    """Cut `texts` into windows of up to `context` tokens, and `context_bytes` if given, and pack them into rows."""
    content = "".join(texts).encode()
    windows = []
    encoded = tokenizer.encode(texts)
    for ids in encoded:
        whole = [tokenizer.end_of_text, *ids]
        ends = None if context_bytes is None else np.cumsum(tokenizer.byte_lengths[whole].astype(np.int64))
        windows += _windows(whole, context, ends, context_bytes)
    seen = f"{context} tokens of {tokenizer.fingerprint[:8]}" if context_bytes is None else f"{context_bytes} bytes"
    return HeldOut(
        rows=list(pack(windows, context)),
        context=context,
        tokens=sum(len(ids) for ids, _ in windows) - sum(skipped for _, skipped in windows) - len(windows),
        bytes=len(content),
        name=f"text {hashlib.sha256(content).hexdigest()[:8]}, context {seen}",
        gzip_bits_per_byte=8 * len(gzip.compress(content, 9)) / len(content),
        xz_bits_per_byte=8 * len(lzma.compress(content, preset=9)) / len(content),
        documents=np.repeat(np.arange(len(encoded)), [len(ids) for ids in encoded]),
        sizes=tokenizer.byte_lengths[np.fromiter(chain.from_iterable(encoded), np.int64)].astype(np.int64),
    )


def evaluate(model: TokenLosses, text: HeldOut, device: torch.device, attention: Attention) -> Score:
    """The model's score on the prepared text; deterministic, and without effect on training."""
    nats = token_nats(model, text, device, attention)
    perplexity = math.exp(min(nats.sum() / text.tokens, 700))
    return Score(nats.sum() / math.log(2) / text.bytes, perplexity, by_position(text, nats))


def by_position(text: HeldOut, nats: np.ndarray) -> list[Part]:
    """The score by how many tokens were there to predict from: 1, 2 and 3, 4 to 7, and so on; named by the least."""
    exponents = np.frexp(text.positions)[1] - 1  # exact, unlike a logarithm
    return parts(text, nats, exponents, [f"{2**exponent}" for exponent in range(exponents.max() + 1)])


def parts(text: HeldOut, nats: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> list[Part]:
    """The score of each group of tokens that holds a byte.

    Args:
        nats: of `token_nats`.
        groups: (tokens,) int64, the place of each token's group in `names`.
    """
    tokens, sizes, losses = (
        np.bincount(groups, weights, len(names)) for weights in (None, text.sizes.astype(float), nats)
    )
    found = zip(names, tokens.tolist(), sizes.tolist(), losses.tolist(), strict=True)
    return [Part(name, count, int(size), loss / math.log(2) / size) for name, count, size, loss in found if size]


def token_nats(model: TokenLosses, text: HeldOut, device: torch.device, attention: Attention) -> np.ndarray:
    """The negative log-likelihood of each scored token, (tokens,) float64, in nats and in the order of the rows."""
    found = []
    for row in text.rows:
        packed, targets, rows = row.inputs(text.context, device, attention)
        found.append(model.token_losses(packed, targets, rows).double().cpu().numpy())
    return np.concatenate(found)


def _windows(
    ids: list[int], context: int, ends: np.ndarray | None, context_bytes: int | None
) -> Iterator[tuple[list[int], int]]:
    """Windows of up to context + 1 ids (inputs and shifted targets), and how many first targets were scored before.

    Args:
        ends: (ids,) bytes up to and with each id; the inputs of a window are at most `context_bytes` of them, but
            for tokens longer than that.
    """
    start, scored = 0, 1  # the first id is no target
    while scored < len(ids):
        end = min(start + context, len(ids) - 1)
        if ends is not None:
            before = ends[start - 1] if start else 0
            end = max(scored, min(end, int(np.searchsorted(ends, before + context_bytes, side="right"))))
        yield ids[start : end + 1], scored - start - 1
        scored = end + 1
        start = end - (context - max(1, context // 2))
        if ends is not None:
            too_far = max(ends[end - 1] - context_bytes // 2, ends[end] - context_bytes)  # half of it, and room for one
            start = min(max(start, 1 + int(np.searchsorted(ends, too_far))), end)


def pack(windows: Sequence[tuple[list[int], int]], context: int) -> Iterator[Row]:
    """Windows in their order, as rows; each is ids (inputs and shifted targets), and how many targets do not count."""
    pending: list[tuple[list[int], int]] = []
    filled = 0
    for ids, skipped in windows:
        if pending and filled + len(ids) - 1 > context:
            yield _row(pending)
            pending, filled = [], 0
        pending.append((ids, skipped))
        filled += len(ids) - 1
    if pending:
        yield _row(pending)


def _row(windows: list[tuple[list[int], int]]) -> Row:
    lengths = [len(ids) - 1 for ids, _ in windows]
    return Row(
        tokens=np.concatenate([ids[:-1] for ids, _ in windows]).astype(np.int64),
        targets=np.concatenate([ids[1:] for ids, _ in windows]).astype(np.int64),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        starts=[0, *np.cumsum(lengths[:-1]).tolist()],
        scored=np.concatenate(
            [np.arange(length) >= skipped for length, (_, skipped) in zip(lengths, windows, strict=True)]
        ),
    )
