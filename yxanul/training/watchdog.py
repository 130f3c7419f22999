"""A watchdog over a run that stands still: it says where, with the stacks of all threads, and lets it be.

A collective that waits for a process that is gone, a file system that does not answer, a kernel that never ends: none
of them raises, and a job that hangs overnight tells nobody.
"""

import faulthandler
import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)


class Watchdog:
    """Looks every so often whether anything has moved since.

    Args:
        seconds: between looks, so a stall is told after once to twice of that; None never to look.
        file: where the stacks go, one stall after another.
    """

    def __init__(self, seconds: float | None, file: Path) -> None:
        self._seconds = seconds
        self._file = file
        self._moves = 0
        self._where = "before the first step"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, where: str) -> None:
        """Something has moved, and the run is now at `where`."""
        self._where = where
        self._moves += 1

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        before = told = -1
        while not self._ended.wait(self._seconds):
            if self._moves == before != told:
                told = before
                self._tell()
            before = self._moves

    def _tell(self) -> None:
        line = f"nothing has moved for {self._seconds:g} s: {self._where}"
        with self._file.open("a") as file:
            print(line, file=file, flush=True)
            faulthandler.dump_traceback(file)
        log.warning("%s; the stacks of all threads are in %s", line, self._file)
