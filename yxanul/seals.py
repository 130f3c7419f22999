"""Files that are told from what they once were: a seal lies beside them, written last.

As git's index does, a seal holds each file's size, modification time and hash: a file of that size and time is taken
for the same without being read, and where the time is another, as in a copy, the hash decides.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from yxanul.files import sha256, write_json


def seal(path: Path, files: Iterable[Path]) -> None:
    """Write to `path` what `files`, which lie beside it, are."""
    write_json(path, {file.name: _seen(file) | {"sha256": sha256(file)} for file in files})


def intact(path: Path) -> bool:
    """Whether the seal is there and its files are what they were when it was written; new times are noted in it."""
    try:
        sealed = json.loads(path.read_text())
        seen = {name: _seen(path.parent / name) for name in sealed}
        moved = [name for name in sealed if sealed[name] != seen[name] | {"sha256": sealed[name]["sha256"]}]
        changed = [
            name
            for name in moved
            if seen[name]["size"] != sealed[name]["size"] or sha256(path.parent / name) != sealed[name]["sha256"]
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False
    if changed or not sealed:
        return False
    if moved:
        with suppress(OSError):  # a cache that can only be read
            write_json(path, {name: sealed[name] | seen[name] for name in sealed})
    return True


def _seen(file: Path) -> dict[str, int]:
    stat = file.stat()
    return {"size": stat.st_size, "modified_ns": stat.st_mtime_ns}
