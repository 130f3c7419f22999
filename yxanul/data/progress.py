"""How far a long work is: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

SECONDS_A_LINE = 30


class Progress:
    """Bytes and tokens done of a number of bytes that is known about."""

    def __init__(self, console: Console, total_bytes: int):
        self._console = console
        self._bar = Bar(
            TextColumn("tokenizing"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[tokens]:,} tokens, left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("tokenizing", total=total_bytes, tokens=0)
        self._total = max(total_bytes, 1)
        self._bytes = self._tokens = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        if error is None:
            self._say("")

    def add(self, num_bytes: int, tokens: int) -> None:
        """Count what was done since the last call."""
        self._bytes += num_bytes
        self._tokens += tokens
        self._bar.update(self._task, completed=self._bytes, tokens=self._tokens)
        if not self._console.is_terminal and time.monotonic() - self._said > SECONDS_A_LINE:
            left = (time.monotonic() - self._began) * max(self._total / max(self._bytes, 1) - 1, 0)
            self._say(f", {left:,.0f} s left")

    def _say(self, rest: str) -> None:
        self._said = time.monotonic()
        seconds = max(self._said - self._began, 1e-3)
        self._console.print(
            f"tokenized {self._bytes / 1e6:,.1f} MB into {self._tokens:,} tokens in {seconds:.1f} s "
            f"({self._bytes / 1e6 / seconds:.1f} MB/s){rest}",
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def phases(console: Console, what: str) -> Iterator[Callable[[str, float], None]]:
    """Shows a work of several phases, as it is told each one's name and the share of it that is done."""
    seen: dict[str, TaskID] = {}
    with Bar(
        TextColumn(what + ": {task.description}"), BarColumn(), console=console, disable=not console.is_terminal
    ) as bar:

        def tell(phase: str, done: float) -> None:
            if phase not in seen:
                seen[phase] = bar.add_task(phase, total=1.0)
                if not console.is_terminal:
                    console.print(f"{what}: {phase}", soft_wrap=True)
            bar.update(seen[phase], completed=done)

        yield tell
