"""Disks that fill, and disks that cannot be written."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .trial import CannotHappen, Case, Verdict, fault

SIZE = "64m"  # in memory; many times what a run and its cache take


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own; raises CannotHappen where none can be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk))
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotHappen(f"no file system can be mounted here: {error}") from error
    if done.returncode:
        raise CannotHappen(f"no file system can be mounted here: {done.stderr.strip()}")


@fault("disk-fills")
def fills(case: Case) -> Verdict:
    """Somebody fills the disk before any of the run's operations on it; the cache is on it in every other trial."""
    with small_disk(case.folder) as disk:
        case = replace(case, folder=disk)
        cache, operations = case.bench.cache, case.bench.count("run")
        if case.number % 2:
            cache, operations = case.cache, operations + case.bench.count("cache")
        when = {
            "place": {"below": str(disk)},
            "call": 1 + case.random.randrange(operations),
            "action": ["fill", {"disk": str(disk), "leave": case.random.randrange(200_000)}],
        }
        return case.judge(
            case.train(inject=[("act", when)], cache=cache),
            says=r"^error: \S*(run|cache)\S*: .*(No space left|free;)",
            again=lambda: case.train(cache=cache),
            mend=(disk / "filler").unlink,
        )


@fault("disk-readonly")
def readonly(case: Case) -> Verdict:
    """A disk that can only be read, below a run that has begun, below one that has not, or below a full cache."""
    bench = case.bench
    with small_disk(case.folder) as disk:
        run, cache = disk / "run", bench.cache
        if case.number % 3 == 0:
            bench.unfinished(run, case.random.choice(bench.saved[1:]))
        elif case.number % 3 == 2:
            run, cache = case.run, shutil.copytree(bench.cache, disk / "cache")
        _mount("-o", "remount,ro", str(disk))
        case = replace(case, folder=run.parent)
        return case.judge(
            case.train(cache=cache),
            says=r"^error: \S*(run|cache)\S*: .*Read-only",
            again=lambda: case.train(cache=cache),
            mend=lambda: _mount("-o", "remount,rw", str(disk)),
        )
