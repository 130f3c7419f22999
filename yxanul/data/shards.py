"""Documents -> tokens on disk, once.

Each part of the source becomes one shard: `NAME.tokens` (little-endian uint16 or uint32, each document begun
by the end-of-text token), `NAME.offsets.npy` (where documents begin), `NAME.held_out.parquet` (the documents
that are never trained on, as text: every tokenizer is judged on the same bytes) and, last, `NAME.json`, whose
presence says that the others are whole. A folder belongs to one source and one tokenizer by their
fingerprints, so nothing stale is ever read, and a stopped preparation goes on where it was.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from rich.progress import track

from yxanul.data.documents import Part, source_fingerprint, unit_hash
from yxanul.errors import UserError
from yxanul.files import atomic_path, write_json
from yxanul.tokenizer.load import Tokenizer

BATCH_CHARACTERS = 1_000_000
SUFFIXES = (".tokens", ".offsets.npy", ".held_out.parquet")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardInfo:
    """What a shard holds; `tokens`, `documents` and `bytes` are of its training documents, `sizes` of its files."""

    name: str
    part: str
    fingerprint: str
    tokens: int
    documents: int
    bytes: int
    held_out_documents: int
    sizes: list[int]
    sha256: str  # of its tokens


@dataclass(frozen=True)
class Corpus:
    """The tokens of a source.

    Attributes:
        folder: where the shards lie.
        fingerprint: of the tokens themselves, so that a copy of the data elsewhere is the same data.
        dtype: of the tokens.
        shards: in the order of the source's parts.
    """

    folder: Path
    fingerprint: str
    dtype: np.dtype
    shards: list[ShardInfo]

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def open(self) -> tuple[list[np.memmap], list[np.ndarray]]:
        """Each non-empty shard's tokens, memory-mapped, and its document offsets, (documents + 1,) int64."""
        filled = [shard for shard in self.shards if shard.documents]
        tokens = [np.memmap(self.folder / f"{shard.name}.tokens", dtype=self.dtype, mode="r") for shard in filled]
        return tokens, [np.load(self.folder / f"{shard.name}.offsets.npy") for shard in filled]

    def held_out(self, at_most_bytes: int) -> list[str]:
        """Held-out documents by ascending hash, whole ones up to `at_most_bytes` of UTF-8 but at least one.

        Raises:
            UserError: nothing was held out.
        """
        texts = [text for shard in self.shards for text in _read_texts(self.folder / f"{shard.name}.held_out.parquet")]
        if not texts:
            raise UserError("no document was held out for evaluation; raise data.held_out or give more documents")
        chosen, size = [], 0
        for text in sorted(texts, key=unit_hash):
            size += len(text.encode())
            if chosen and size > at_most_bytes:
                break
            chosen.append(text)
        return chosen


def training_documents(parts: Iterable[Part], held_out: float) -> Iterator[str]:
    """The documents that may be trained on (a tokenizer, too, learns from these alone)."""
    return (text for part in parts for text in part.documents() if unit_hash(text) >= held_out)


def prepare(parts: list[Part], tokenizer: Tokenizer, held_out: float, cache: Path) -> Corpus:
    """Tokenize what is not tokenized yet and return the corpus.

    Args:
        held_out: share of the documents, by their hash, that is kept apart for evaluation.

    Raises:
        UserError: a source file is damaged, or there is no document to train on.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    identity = f"{source_fingerprint(parts)} {tokenizer.fingerprint} {held_out}"
    folder = cache / "tokens" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    names = {f"{index:05d}": part for index, part in enumerate(parts)}
    done = {name: info for name, part in names.items() if (info := _finished(folder, name, part))}
    missing = [name for name in names if name not in done]
    for name in track(missing, f"tokenizing into {folder}", disable=not missing):
        done[name] = _write_shard(folder, name, names[name], tokenizer, held_out, dtype)
    shards = [done[name] for name in names]
    content = hashlib.sha256(" ".join(shard.sha256 for shard in shards).encode()).hexdigest()
    corpus = Corpus(folder, content, dtype, shards)
    if missing:
        write_json(
            folder / "manifest.json",
            {
                "source": source_fingerprint(parts),
                "tokenizer": tokenizer.fingerprint,
                "held_out": held_out,
                "dtype": dtype.name,
                "tokens": corpus.tokens,
                "bytes": corpus.bytes,
                "shards": [asdict(shard) for shard in corpus.shards],
            },
        )
    if corpus.tokens == 0:
        raise UserError("the data holds no document to train on; give more documents or lower data.held_out")
    return corpus


def _finished(folder: Path, name: str, part: Part) -> ShardInfo | None:
    try:
        info = ShardInfo(**json.loads((folder / f"{name}.json").read_text()))
        sizes = _sizes(folder, name)
    except (OSError, ValueError, TypeError):
        return None
    if info.fingerprint != part.fingerprint or info.sizes != sizes:
        log.warning("%s: shard %s does not fit its record and is made again", folder, name)
        return None
    return info


def _write_shard(
    folder: Path, name: str, part: Part, tokenizer: Tokenizer, held_out: float, dtype: np.dtype
) -> ShardInfo:
    offsets, kept_apart, num_bytes, digest = [0], [], 0, hashlib.sha256()
    with atomic_path(folder / f"{name}.tokens") as path, path.open("wb") as output:
        for texts in _batches(part.documents()):
            training = []
            for text in texts:
                (training if unit_hash(text) >= held_out else kept_apart).append(text)
            for ids in tokenizer.encode(training):
                document = np.array([tokenizer.end_of_text, *ids], dtype=dtype)
                output.write(document)
                digest.update(document)
                offsets.append(offsets[-1] + len(document))
            num_bytes += sum(len(text.encode()) for text in training)
        output.flush()
    with atomic_path(folder / f"{name}.offsets.npy") as path, path.open("wb") as output:
        np.save(output, np.array(offsets, dtype=np.int64))
    with atomic_path(folder / f"{name}.held_out.parquet") as path:
        parquet.write_table(pyarrow.table({"text": pyarrow.array(kept_apart, pyarrow.string())}), path)
    info = ShardInfo(
        name=name,
        part=part.name,
        fingerprint=part.fingerprint,
        tokens=offsets[-1],
        documents=len(offsets) - 1,
        bytes=num_bytes,
        held_out_documents=len(kept_apart),
        sizes=_sizes(folder, name),
        sha256=digest.hexdigest(),
    )
    write_json(folder / f"{name}.json", asdict(info))
    return info


def _sizes(folder: Path, name: str) -> list[int]:
    return [(folder / f"{name}{suffix}").stat().st_size for suffix in SUFFIXES]


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """Lists of documents of about BATCH_CHARACTERS, so that the library can encode with all cores."""
    batch, size = [], 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_texts(path: Path) -> list[str]:
    return parquet.read_table(path)["text"].to_pylist()
