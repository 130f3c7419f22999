"""Readers: files of text -> parts -> documents.

A source is a list of parts, the units of tokenization: a part has a name, a fingerprint that changes when its
bytes do, and yields its documents in a fixed order. Nothing is read before it is asked for, and parquet is
streamed by row group with only the text column decoded.
"""

import hashlib
import json
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from yxanul.config import DataConfig, DataKind
from yxanul.errors import ConfigError, UserError

STDLIB_PARTS = 8
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Part:
    """A stretch of the source that is tokenized as one shard.

    Attributes:
        name: unique in its source, fit for a message.
        fingerprint: changes when the part's content may have changed (paths, sizes, modification times).
        documents: yields the texts, in the same order every time.
    """

    name: str
    fingerprint: str
    documents: Callable[[], Iterator[str]]


def open_source(data: DataConfig) -> list[Part]:
    """The parts of the configured text, in a fixed order.

    Raises:
        UserError: the path is missing or holds nothing readable, a parquet file is damaged or lacks the column.
    """
    if data.kind is DataKind.stdlib:
        return stdlib_parts()
    path = Path(data.path).expanduser()
    if not path.exists():
        how = f"; get it with: {data.get_it}" if data.get_it else ""
        raise ConfigError(
            "data.path",
            data.path,
            f"no such file or folder{how}; or run without it: experiment=quickstart",
        )
    readers = {".parquet": parquet_documents, ".jsonl": jsonl_documents, ".txt": text_documents}
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in readers)
    if not files or files[0].suffix not in readers:
        raise ConfigError("data.path", data.path, "holds no *.parquet, *.jsonl or *.txt file")
    for file in files:
        if file.suffix == ".parquet":
            check_parquet(file, data.text_column)
    root = path if path.is_dir() else path.parent
    return [
        Part(
            str(file.relative_to(root)),
            file_fingerprint(file),
            lambda file=file: readers[file.suffix](file, data.text_column),
        )
        for file in files
    ]


def file_fingerprint(file: Path) -> str:
    """Size and modification time: what make goes by, and cheap for 300 files of 40 MB."""
    stat = file.stat()
    return f"{file.name}:{stat.st_size}:{stat.st_mtime_ns}"


def check_parquet(file: Path, column: str) -> None:
    """Read the footer only; raise UserError if the file is empty, truncated, or lacks the text column."""
    try:
        schema = parquet.read_schema(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{file}: is no readable parquet file ({_first_line(error)}); download it again or remove it"
        ) from error
    if column not in schema.names:
        raise UserError(
            f"{file}: has no column {column!r}, only {', '.join(schema.names)}; name one with data.text_column="
        )
    kind = schema.field(column).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{file}: column {column!r} holds {kind}, not text; name another with data.text_column=")


def parquet_documents(file: Path, column: str) -> Iterator[str]:
    """The non-empty texts of one column, a row group in memory at a time."""
    try:
        with parquet.ParquetFile(file) as table:
            for group in range(table.num_row_groups):
                for text in table.read_row_group(group, columns=[column])[column].to_pylist():
                    if text:
                        yield text
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: is damaged ({_first_line(error)}); download it again or remove it") from error


def jsonl_documents(file: Path, column: str) -> Iterator[str]:
    """The non-empty texts under `column` of a file with one JSON object a line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                # JSON may hold lone surrogates, which are no text
                text = (json.loads(line)[column] or "").encode("utf-8", "replace").decode()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{file}:{number}: is no JSON object with text under {column!r}; mend or remove the line"
                ) from error
            if text:
                yield text


def text_documents(file: Path, column: str) -> Iterator[str]:
    """The documents of a text file, divided by lines that hold only <|endoftext|>."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text ({_first_line(error)}); convert it or remove it") from error
    for document in re.split(r"\n?^<\|endoftext\|>$\n?", text, flags=re.MULTILINE):
        if document:
            yield document


def stdlib_parts() -> list[Part]:
    """The standard library of the running interpreter, one module file a document, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(root.rglob("*.py")) if not NOT_LIBRARY & set(file.relative_to(root).parts)]
    parts = []
    for index in range(STDLIB_PARTS):
        mine = files[index::STDLIB_PARTS]
        sizes = ",".join(f"{file.relative_to(root)}:{file.stat().st_size}" for file in mine)
        fingerprint = hashlib.sha256(sizes.encode()).hexdigest()
        parts.append(Part(f"stdlib-{index}", fingerprint, lambda mine=mine: _readable(mine)))
    return parts


def _readable(files: list[Path]) -> Iterator[str]:
    for file in files:
        text = file.read_bytes().decode("utf-8", errors="ignore")
        if text:
            yield text


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def source_fingerprint(parts: list[Part]) -> str:
    """One hash over all parts' names and fingerprints, in hexadecimal."""
    lines = "\n".join(f"{part.name}\t{part.fingerprint}" for part in parts)
    return hashlib.sha256(lines.encode()).hexdigest()


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the document's text alone; decides what is held out."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
