"""Readers: files of text -> parts -> documents.

A source is a list of parts, the units of tokenization: a part has a name, a fingerprint that changes when its
bytes do, and yields its documents in a fixed order. A row that holds no text is yielded as `Skipped`, with its
place and the reason, and what follows it is read all the same: whether to go on is the consumer's affair.
Nothing is read before it is asked for, and no file is ever in memory whole.
"""

import hashlib
import json
import logging
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from yxanul.config import DataConfig, DataKind, OnError
from yxanul.errors import ConfigError, UserError

PART_BYTES = 64 * 2**20
"""About the text of one part: larger parquet files are divided between row groups."""
READ_ROWS = 256
READ_BYTES = 2**20
STDLIB_PARTS = 8
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
SEPARATOR = b"<|endoftext|>"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skipped:
    """A row, or the rows from it to the end of a row group or file, that gave no document.

    Attributes:
        file: the file's name in its source.
        row: counted from 0; in a .jsonl or .txt file lines or documents, counted from 1.
        reason: what is wrong with it.
    """

    file: str
    row: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.row is None else f', row {self.row}'}: {self.reason}"

    def error(self) -> UserError:
        """For those who stop at it."""
        return UserError(f"{self}; mend the file, or go on without such rows by data.on_error=skip")


@dataclass(frozen=True)
class Part:
    """A stretch of the source that is tokenized as one shard.

    Attributes:
        name: unique in its source, fit for a message.
        fingerprint: changes when the part's content may have changed (paths, sizes, modification times).
        documents: yields the texts and what was skipped, in the same order every time.
        bytes: of text, about; for the progress bar and the number of workers.
    """

    name: str
    fingerprint: str
    documents: Callable[[], Iterable[str | Skipped]]
    bytes: int = 0


@dataclass
class Texts:
    """The texts of parts, read anew at every iteration; `skipped` counts what gave none in the last one.

    Iterating raises UserError at a row without text, unless `on_error` is skip.
    """

    parts: list[Part]
    on_error: OnError
    skipped: int = 0

    def __iter__(self) -> Iterator[str]:
        self.skipped = 0
        for part in self.parts:
            for row in part.documents():
                if isinstance(row, str):
                    yield row
                elif self.on_error is OnError.stop:
                    raise row.error()
                else:
                    self.skipped += 1


def open_source(data: DataConfig) -> list[Part]:
    """The parts of the configured text, in a fixed order.

    Raises:
        UserError: the path is missing or holds nothing readable, a parquet file lacks the column, or, unless
            data.on_error is skip, is damaged.
    """
    if data.kind is DataKind.stdlib:
        return stdlib_parts()
    path = Path(data.path).expanduser()
    apart = _held_out_files(data)
    files = [file for file in source_files(path) if not any(file.samefile(each) for each in apart)]
    if not files:
        missing = "holds no *.parquet, *.jsonl or *.txt file" if path.exists() else "no such file or folder"
        how = f"; it is {data.repo} on the Hugging Face hub" if data.repo else ""
        raise ConfigError("data.path", data.path, f"{missing}{how}; or run without it: experiment=quickstart")
    if data.expected_files is not None and len(files) != data.expected_files:
        log.warning("data.path=%s holds %d of the %d files", data.path, len(files), data.expected_files)
    root = path if path.is_dir() else path.parent
    return [part for file in files for part in _parts_of(file, str(file.relative_to(root)), data)]


def _held_out_files(data: DataConfig) -> list[Path]:
    if data.held_out_path is None:
        return []
    files = source_files(Path(data.held_out_path).expanduser())
    if not files:
        raise ConfigError("data.held_out_path", data.held_out_path, "no such file, or no *.parquet, *.jsonl or *.txt")
    return files


def source_files(path: Path) -> list[Path]:
    """The readable files at or below `path`, sorted; none if there is no such path."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in files if file.suffix in (".parquet", *_LINES)]


def _parts_of(file: Path, name: str, data: DataConfig) -> list[Part]:
    stat = file.stat()
    fingerprint = f"{file.name}:{stat.st_size}:{stat.st_mtime_ns}"  # what make goes by, and cheap for 300 files
    if file.suffix in _LINES:
        read = partial(_LINES[file.suffix], file, name, data.text_column)
        return [Part(name, fingerprint, read, stat.st_size)]
    try:
        ranges = _row_group_ranges(file, data.text_column)
    except (pyarrow.ArrowException, OSError) as error:
        wrong = Skipped(name, None, f"is no readable parquet file ({_first_line(error)})")
        if data.on_error is OnError.stop:
            raise UserError(
                f"{file}: is no readable parquet file ({_first_line(error)}); download it again or remove it, "
                "or go on without it by data.on_error=skip"
            ) from error
        return [Part(name, fingerprint, partial(iter, [wrong]))]
    read = partial(parquet_documents, file, name, data.text_column)
    if len(ranges) == 1:
        return [Part(name, fingerprint, partial(read, *ranges[0][:2]), ranges[0][2])]
    return [
        Part(f"{name}[{begin}:{end}]", f"{fingerprint}[{begin}:{end}]", partial(read, begin, end), size)
        for begin, end, size in ranges
    ]


def _row_group_ranges(file: Path, column: str) -> list[tuple[int, int, int]]:
    """(first row group, end, bytes of text) of each part of a file, from its footer alone.

    Raises:
        UserError: the column is not there or holds no text.
    """
    with parquet.ParquetFile(file) as table:
        _check_column(file, table.schema_arrow, column)
        index = table.schema.names.index(column)
        groups = [table.metadata.row_group(g).column(index) for g in range(table.num_row_groups)]
    ranges, begin, size = [], 0, 0
    for group, chunk in enumerate(groups):
        size += chunk.total_uncompressed_size
        if size >= PART_BYTES or group == len(groups) - 1:
            ranges.append((begin, group + 1, size))
            begin, size = group + 1, 0
    return ranges or [(0, 0, 0)]


def _check_column(file: Path, schema: pyarrow.Schema, column: str) -> None:
    if column not in schema.names:
        raise UserError(
            f"{file}: has no column {column!r}, only {', '.join(schema.names)}; name one with data.text_column="
        )
    kind = schema.field(column).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{file}: column {column!r} holds {kind}, not text; name another with data.text_column=")


def parquet_documents(file: Path, name: str, column: str, begin: int, end: int) -> Iterator[str | Skipped]:
    """The non-empty texts of one column in row groups [begin, end), a few hundred rows in memory at a time."""
    with parquet.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False) as table:
        row = sum(table.metadata.row_group(group).num_rows for group in range(begin))
        for group in range(begin, end):
            done = 0
            try:
                for batch in table.iter_batches(READ_ROWS, row_groups=[group], columns=[column], use_threads=False):
                    for text in _texts(batch[column]):
                        if text is None or isinstance(text, UnicodeDecodeError):
                            reason = "is null" if text is None else f"is not UTF-8 ({_first_line(text)})"
                            yield Skipped(name, row + done, reason)
                        elif text:
                            yield text
                        done += 1
            except (pyarrow.ArrowException, OSError) as error:
                after = table.metadata.row_group(group).num_rows - done - 1
                reason = f"it and the {after} rows after it in row group {group} are damaged ({_first_line(error)})"
                yield Skipped(name, row + done, reason)
            row += table.metadata.row_group(group).num_rows


def _texts(column: pyarrow.Array) -> list[str | UnicodeDecodeError | None]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_text(value) for value in column]


def _text(value: pyarrow.Scalar) -> str | UnicodeDecodeError | None:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error


def jsonl_documents(file: Path, name: str, column: str) -> Iterator[str | Skipped]:
    """The non-empty texts under `column` of a file with one JSON object a line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)[column]
                if text is None:
                    yield Skipped(name, number, "is null")
                elif text := text.encode(errors="replace").decode():  # JSON may hold lone surrogates, which are no text
                    yield text
            except UnicodeDecodeError as error:
                yield Skipped(name, number, f"is not UTF-8 ({_first_line(error)})")
            except (ValueError, KeyError, TypeError, AttributeError):
                yield Skipped(name, number, f"is no JSON object with text under {column!r}")


def text_documents(file: Path, name: str, column: str) -> Iterator[str | Skipped]:
    """The documents of a text file, divided by lines that hold only <|endoftext|>."""
    number, lines = 1, []
    with file.open("rb") as source:
        for line in source:
            if line.rstrip(b"\r\n") == SEPARATOR:
                yield from _decoded(b"".join(lines).removesuffix(b"\n").removesuffix(b"\r"), name, number)
                number, lines = number + 1, []
            else:
                lines.append(line)
    yield from _decoded(b"".join(lines), name, number)


def _decoded(content: bytes, name: str, number: int) -> Iterator[str | Skipped]:
    try:
        if content:
            yield content.decode()
    except UnicodeDecodeError as error:
        yield Skipped(name, number, f"is not UTF-8 ({_first_line(error)})")


_LINES = {".jsonl": jsonl_documents, ".txt": text_documents}


def stdlib_parts() -> list[Part]:
    """The standard library of the running interpreter, one module file a document, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(root.rglob("*.py")) if not NOT_LIBRARY & set(file.relative_to(root).parts)]
    parts = []
    for index in range(STDLIB_PARTS):
        mine = files[index::STDLIB_PARTS]
        sizes = [file.stat().st_size for file in mine]
        listing = ",".join(f"{file.relative_to(root)}:{size}" for file, size in zip(mine, sizes, strict=True))
        fingerprint = hashlib.sha256(listing.encode()).hexdigest()
        parts.append(Part(f"stdlib-{index}", fingerprint, partial(_readable, mine), sum(sizes)))
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


def hash64(text: str) -> int:
    """64 bits that depend on the document's text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the document's text alone; decides what is held out."""
    return hash64(text) / 2**64
