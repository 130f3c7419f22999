"""Whether files of the cache are still what they were when they were made: a seal lies beside them, written last.

As git's index does, a seal holds each file's size, modification time and hash: a file of that size and time is taken
for the same without being read, and where the time is another, as in a copy, the hash decides.
"""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from yxanul.files import sha256, write_json

log = logging.getLogger(__name__)


def seal_of(path: Path) -> Path:
    """Where the seal of a file lies: NAME.seal.json beside NAME.json."""
    return path.with_suffix(".seal.json")


def seal(path: Path, *others: Path) -> None:
    """Write down what a file is, and others of its folder that belong to it; raises OSError if one is not there."""
    stats = {file: file.stat() for file in (path, *others)}
    record = {
        file.name: {"size": stat.st_size, "modified_ns": stat.st_mtime_ns, "sha256": sha256(file)}
        for file, stat in stats.items()
    }
    write_json(seal_of(path), record)


def intact(path: Path) -> bool:
    """Whether a file and those sealed with it are what they were then; False, and no error, where there is no seal.

    New times of unchanged files are noted in the seal, so that their hashes are taken once.
    """
    if not seal_of(path).exists():
        return False
    try:
        sealed = json.loads(seal_of(path).read_text())
        now = {name: _unchanged(path.with_name(name), was) for name, was in sealed.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        now = {}
    if path.name not in now or None in now.values():
        log.warning("%s: is not as it was made, and is made again", path)
        return False
    if now != sealed:
        with suppress(OSError):  # a cache that can only be read
            write_json(seal_of(path), now)
    return True


def _unchanged(file: Path, was: dict[str, Any]) -> dict[str, Any] | None:
    """What the seal says of a file, with the time that it has now; None if it is another."""
    stat = file.stat()
    same_time = stat.st_mtime_ns == was["modified_ns"]
    same = stat.st_size == was["size"] and (same_time or sha256(file) == was["sha256"])
    return was | {"modified_ns": stat.st_mtime_ns} if same else None
