"""Files that are there whole or not at all."""

import contextlib
import fcntl
import filecmp
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.filesize import decimal

from yxanul.errors import ConfigError, UserError


def room(key: str, folder: Path, needed: int = 0, what: str = "") -> str:
    """How much can be written to a folder, in words; nothing stays behind.

    Args:
        key: that names the folder.
        needed: bytes.
        what: they are for, as the beginning of "... 2.0 GB, 1.9 GB free".

    Raises:
        UserError: the folder cannot be written, or has less room.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written ({error.strerror}); name another folder") from error
    words = f"{what} {decimal(needed)}, {decimal(free)} free" if needed else f"{decimal(free)} free"
    if needed >= free:
        raise UserError(f"{key}={folder}: {words}; make room there, or name another folder")
    return f"{words} in {folder}"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to.

    On success it is synced and takes the name, in a way that outlives a power cut; on error it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # no two machines choose the same
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write that fails names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As `atomic_path`, for a folder of files that is not there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        os.rename(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_record(path: Path, advice: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The keys and values of a JSON or YAML file that a run wrote.

    Args:
        advice: what to do about it if it is damaged.
        needed: keys that it must have.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be read, or is not there.
    """
    read = yaml.safe_load if path.suffix == ".yaml" else json.loads
    try:
        record = read(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: is damaged ({str(error).splitlines()[0]}); {advice}") from error
    lacking = [key for key in needed if key not in record] if isinstance(record, dict) else ["keys and values"]
    if lacking:
        raise UserError(f"{path}: is damaged (it lacks {', '.join(lacking)}); {advice}")
    return record


def keep_file(source: Path, target: Path) -> None:
    """A copy of a file, atomically, unless there is one like it."""
    if not target.exists() or not filecmp.cmp(source, target, shallow=False):
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed while they wrote left in a folder that nobody else writes to."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def output_folder(output: str) -> Path:
    """The folder that the key `output` names, made before the work, so that a wrong path is told at once.

    Raises:
        ConfigError: it is a file or lies below one.
    """
    folder = Path(output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError("output", output, "is a file or lies below one; name a folder") from error
    return folder


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path` against other processes; it is freed even if this one is killed.

    Yields whether it is held: without `wait`, False while another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing would not free it while a forked child has the file open


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the disk hold a file's (or a folder's) content before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
