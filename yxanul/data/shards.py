"""Tokens on disk: the format of a shard, and the corpus that shards make up.

Each part of the source becomes one shard: `NAME.tokens` (little-endian uint16 or uint32, each document begun
by the end-of-text token), `NAME.offsets.npy` (where documents begin), `NAME.hashes.npy` (of each document's
text), `NAME.held_out.parquet` (the documents that are never trained on, as text: every tokenizer is judged on
the same bytes), `NAME.json`, which sums them up, and, last, `NAME.seal.json`, by which the others are known to be whole
and unchanged. A folder belongs to one source and one tokenizer by their fingerprints, so nothing stale is ever read;
`manifest.json` sums it up.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from yxanul.config import OnError
from yxanul.data.documents import Part, Skipped, Texts, hash64, source_fingerprint, unit_hash
from yxanul.errors import UserError
from yxanul.files import atomic_path, locked, write_json
from yxanul.seals import intact, seal, seal_of
from yxanul.tokenizer.encode import Encoder, batches, num_bytes

BATCH_CHARACTERS = 4_000_000
SUFFIXES = (".tokens", ".offsets.npy", ".hashes.npy", ".held_out.parquet")
SKIPS_LISTED = 100


@dataclass(frozen=True)
class ShardInfo:
    """What a shard holds; `tokens`, `documents` and `bytes` are of its training documents."""

    name: str
    part: str
    fingerprint: str
    tokens: int
    documents: int
    bytes: int
    held_out_documents: int
    held_out_bytes: int
    sha256: str  # of its tokens
    skipped: int = 0
    skips: list[str] = field(default_factory=list)  # the first of what was skipped: file, row and reason


@dataclass(frozen=True)
class ShardFolder:
    """Where the tokens of one source and one tokenizer lie, and how they are written."""

    path: Path
    source: str
    tokenizer: str
    held_out: float  # share of the documents, by their hash, that is kept apart
    end_of_text: int
    dtype: np.dtype
    parts: dict[str, Part]  # by the shard's name, in the order of the source

    def finished(self, name: str) -> ShardInfo | None:
        """The record of a shard that is whole and of this source."""
        record = self.path / f"{name}.json"
        if not intact(record):
            return None
        info = ShardInfo(**json.loads(record.read_text()))
        return info if info.fingerprint == self.parts[name].fingerprint else None

    def write(
        self,
        name: str,
        encoder: Encoder,
        on_error: OnError,
        report: Callable[[int, int], None] = lambda *_: None,
    ) -> ShardInfo:
        """Tokenize a part.

        Args:
            report: called now and then with the bytes and tokens done since.

        Raises:
            UserError: a row gives no document, and `on_error` is stop.
        """
        self.clean(name)
        record = self.path / f"{name}.json"
        seal_of(record).unlink(missing_ok=True)
        part = self.parts[name]
        contents = _Contents(self, encoder)
        with atomic_path(self.path / f"{name}.tokens") as path, path.open("wb") as output:
            for rows in batches(part.documents(), BATCH_CHARACTERS, _length):
                output.write(contents.add(rows, on_error, report))
        self._save(f"{name}.offsets.npy", np.concatenate(contents.offsets))
        self._save(f"{name}.hashes.npy", np.concatenate(contents.hashes))
        with atomic_path(self.path / f"{name}.held_out.parquet") as path:
            parquet.write_table(pyarrow.table({"text": pyarrow.array(contents.held_out, pyarrow.string())}), path)
        info = ShardInfo(
            name=name,
            part=part.name,
            fingerprint=part.fingerprint,
            tokens=contents.tokens,
            documents=sum(map(len, contents.offsets)) - 1,
            bytes=contents.bytes,
            held_out_documents=len(contents.held_out),
            held_out_bytes=sum(map(num_bytes, contents.held_out)),
            sha256=contents.digest.hexdigest(),
            skipped=len(contents.skipped),
            skips=list(map(str, contents.skipped[:SKIPS_LISTED])),
        )
        write_json(record, asdict(info))
        seal(record, *(self.path / f"{name}{suffix}" for suffix in SUFFIXES))
        return info

    def clean(self, name: str) -> None:
        """Remove what a killed process left half written of a shard or the manifest; its lock must be held."""
        for left in self.path.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)

    def counted(self) -> int | None:
        """How many finished shards manifest.json knows of; None if it is not there."""
        try:
            return json.loads((self.path / "manifest.json").read_text())["finished"]
        except (OSError, ValueError, KeyError):
            return None

    def write_manifest(self) -> None:
        """Sum up the shards that are finished, whoever made them, in manifest.json."""
        with locked(self.path / ".manifest.lock"):
            self.clean("manifest")
            shards = [info for name in self.parts if (info := self.finished(name))]
            summary = {
                "source": self.source,
                "tokenizer": self.tokenizer,
                "held_out": self.held_out,
                "dtype": self.dtype.name,
                "parts": len(self.parts),
                "finished": len(shards),
                "tokens": sum(shard.tokens for shard in shards),
                "documents": sum(shard.documents for shard in shards),
                "bytes": sum(shard.bytes for shard in shards),
                "skipped": sum(shard.skipped for shard in shards),
                "shards": [asdict(shard) for shard in shards],
            }
            write_json(self.path / "manifest.json", summary)

    def _save(self, name: str, array: np.ndarray) -> None:
        with atomic_path(self.path / name) as path, path.open("wb") as output:
            np.save(output, array)


class _Contents:
    """What a shard's documents add up to, batch by batch."""

    def __init__(self, folder: ShardFolder, encoder: Encoder):
        self._folder = folder
        self._encoder = encoder
        self.offsets = [np.zeros(1, np.int64)]
        self.hashes = [np.zeros(0, np.uint64)]
        self.held_out: list[str] = []
        self.skipped: list[Skipped] = []
        self.tokens = self.bytes = 0
        self.digest = hashlib.sha256()

    def add(self, rows: list[str | Skipped], on_error: OnError, report: Callable[[int, int], None]) -> np.ndarray:
        """The tokens of the training documents among `rows`."""
        self.skipped += [row for row in rows if isinstance(row, Skipped)]
        if self.skipped and on_error is OnError.stop:
            raise self.skipped[0].error()
        texts = [row for row in rows if isinstance(row, str)]
        hashes = np.fromiter(map(hash64, texts), np.uint64, len(texts))
        trained = hashes / 2.0**64 >= self._folder.held_out  # unit_hash, for all at once
        training = list(compress(texts, trained))
        self.held_out += compress(texts, ~trained)
        ids, begins = self._encoder.encode(training)
        tokens = np.insert(ids.astype(self._folder.dtype), begins[:-1], self._folder.end_of_text)
        self.offsets.append(self.tokens + begins[1:] + np.arange(1, len(begins)))
        self.hashes.append(hashes[trained])
        self.digest.update(tokens)
        size = sum(map(num_bytes, training))
        self.bytes += size
        self.tokens += len(tokens)
        report(size, len(tokens))
        return tokens


def shard_folder(
    parts: list[Part], tokenizer: str, vocab_size: int, end_of_text: int, held_out: float, cache: Path
) -> ShardFolder:
    """The folder for the tokens of `parts`.

    Args:
        tokenizer: the tokenizer's fingerprint.
        held_out: share of the documents, by their hash, that is kept apart for evaluation.
    """
    source = source_fingerprint(parts)
    name = hashlib.sha256(f"{source} {tokenizer} {held_out}".encode()).hexdigest()[:16]
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    named = {f"{index:05d}": part for index, part in enumerate(parts)}
    return ShardFolder(cache / "tokens" / name, source, tokenizer, held_out, end_of_text, dtype, named)


@dataclass(frozen=True)
class Corpus:
    """The tokens of a source.

    Attributes:
        folder: where the shards lie.
        dtype: of the tokens.
        shards: those that are finished, in the order of the source's parts.
        parts: how many shards there are to be.
    """

    folder: Path
    dtype: np.dtype
    shards: list[ShardInfo]
    parts: int

    @cached_property
    def fingerprint(self) -> str:
        """Of the tokens themselves, so that a copy of the data elsewhere is the same data."""
        return hashlib.sha256(" ".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def skipped(self) -> int:
        """Rows of the source that gave no document."""
        return sum(shard.skipped for shard in self.shards)

    def record(self) -> dict[str, Any]:
        """What a run says of the data that it reads."""
        names = ("fingerprint", "documents", "tokens", "bytes", "skipped")
        return {"folder": str(self.folder)} | {name: getattr(self, name) for name in names}

    def open(self) -> tuple[list[np.memmap], list[np.ndarray]]:
        """Each non-empty shard's tokens, memory-mapped, and its document offsets, (documents + 1,) int64."""
        filled = [shard for shard in self.shards if shard.documents]
        tokens = [np.memmap(self.folder / f"{shard.name}.tokens", dtype=self.dtype, mode="r") for shard in filled]
        return tokens, [np.load(self.folder / f"{shard.name}.offsets.npy") for shard in filled]

    def hashes(self) -> np.ndarray:
        """Of every training document's text, (documents,) uint64."""
        return np.concatenate([np.load(self.folder / f"{shard.name}.hashes.npy") for shard in self.shards])

    def held_out(self, at_most_bytes: int) -> list[str]:
        """Held-out documents, as `first_by_hash` chooses them.

        Raises:
            UserError: nothing was held out.
        """
        texts = [text for shard in self.shards for text in _read_texts(self.folder / f"{shard.name}.held_out.parquet")]
        if not texts:
            raise UserError("no document was held out for evaluation; raise data.held_out or give more documents")
        return first_by_hash(texts, at_most_bytes)


def first_by_hash(texts: Iterable[str], at_most_bytes: int) -> list[str]:
    """Texts by ascending hash, whole ones up to `at_most_bytes` of UTF-8 but at least one."""
    chosen: list[str] = []
    size = 0
    for text in sorted(texts, key=hash64):
        size += num_bytes(text)
        if chosen and size > at_most_bytes:
            break
        chosen.append(text)
    return chosen


def training_documents(parts: list[Part], held_out: float) -> Iterator[str]:
    """The documents that may be trained on (a tokenizer, too, learns from these alone)."""
    return (text for text in Texts(parts, OnError.skip) if unit_hash(text) >= held_out)


def _length(row: str | Skipped) -> int:
    return len(row) if isinstance(row, str) else 0


def _read_texts(path: Path) -> list[str]:
    return parquet.ParquetFile(path).read()["text"].to_pylist()  # read_table imports pandas, half a second
