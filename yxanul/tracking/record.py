"""The append-only metrics.jsonl of a run: one JSON object a line, and the only truth about it.

Runs get killed: by a scheduler, a full disk, a power cut. So each row reaches the operating
system before `append` returns, a line torn by the kill is no row, and a resumed run cuts the
rows after its checkpoint in one atomic step before it writes them anew.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from yxanul.errors import UserError
from yxanul.files import atomic_path
from yxanul.tracking.rows import Row


class Record:
    """Appends to one metrics.jsonl. One process of a run owns it; others call `read_rows`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def append(self, row: Row) -> None:
        """Write one row. It survives a SIGKILL of this process from the moment this returns."""
        line = _encode(row)
        if self._file is None:
            self._file = self._open()
        self._file.write(line)
        self._file.flush()

    def truncate_after(self, step: float) -> None:
        """Drop the rows of steps after `step`, and a torn last line. All of it, or nothing."""
        self.close()
        if not self.path.exists():
            return
        before = self.path.read_bytes()
        after = b"".join(line + b"\n" for line, row in _parse(before, self.path) if row["step"] <= step)
        if after != before:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(after)

    def close(self) -> None:
        """Let go of the file. A later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        self.truncate_after(math.inf)  # or the first row would be glued to a torn line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path.open("ab")


def read_rows(path: Path) -> list[Row]:
    """All rows, also of a run that is being written or was killed while it wrote its last line."""
    return [row for _, row in _parse(path.read_bytes(), path)]


def _encode(row: Row) -> bytes:
    if "step" not in row:
        raise ValueError(f"a row needs a step, or no resume could place it: {row}")
    # NaN and Infinity are not JSON, and strict readers would refuse the whole file.
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


def _parse(content: bytes, path: Path) -> Iterator[tuple[bytes, Row]]:
    """Yield each line with its row. Only the last line may be broken: a kill breaks no other."""
    lines = content.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError("it is no object with a step")
        except ValueError as error:
            if number == len(lines):
                return
            raise UserError(f"{path}: is damaged (line {number} is no row: {error}); remove that line") from error
        yield line, row
