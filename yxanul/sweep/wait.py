"""Seeing a sweep's jobs through: start them, notice how each ends, wait for none that is dead."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console

from yxanul.errors import UserError
from yxanul.sweep import scheduler
from yxanul.sweep.runs import JobRecord, recorded_job, recorded_runs
from yxanul.sweep.states import ON_ITS_WAY, RunState, State, run_state
from yxanul.sweep.table import shown

LOOKS = 3
"""How often in a row a job must be seen dead: a requeue, or a slow file system, looks like it for a moment."""

SECONDS_TO_LEAVE = 60
"""How long a cancelled job may take to save and leave."""


class Wait:
    """The jobs of some runs of a sweep.

    Args:
        sweep: its folder.
        runs: the names of the runs.
        submit: starts a run, given its name and the lowest number that no run on its way has; None: none is started.
        console: told how each run ends.
        parallel: how many may be on their way at once; None for all.
        poll_seconds: between two looks at them.
    """

    def __init__(
        self,
        sweep: Path,
        runs: Sequence[str],
        submit: Callable[[str, int], JobRecord] | None,
        console: Console,
        parallel: int | None,
        poll_seconds: float,
    ) -> None:
        self.sweep, self.console, self.submit = sweep, console, submit
        self.parallel, self.poll_seconds = parallel, poll_seconds
        self.varies = recorded_runs(sweep)
        self.jobs: dict[str, JobRecord] = {}  # on their way
        self.dead: dict[str, int] = {}
        self.slots: dict[str, int] = {}
        self.waiting: list[str] = []
        recorded = {name: recorded_job(sweep / name) for name in runs}
        seen = scheduler.look([(sweep / name, job) for name, job in recorded.items() if job])
        for name, job in recorded.items():
            state = self._state(name, job, seen[job.id] if job else "gone").state
            if state in ON_ITS_WAY:
                self._began(name, job)  # of an earlier start of this sweep
            elif state is State.finished:
                self._say(f"{self._called(name)}: is finished")
            else:
                self.waiting.append(name)

    def submit_all(self) -> None:
        """Start what may be started now."""
        while self.submit and self.waiting and (self.parallel is None or len(self.jobs) < self.parallel):
            name = self.waiting.pop(0)
            slot = next(number for number in range(len(self.jobs) + 1) if number not in self.slots.values())
            self._began(name, self.submit(name, slot), slot)

    def until_ended(self) -> None:
        """Start all runs and return when none is on its way."""
        self.submit_all()
        while self.jobs:
            time.sleep(self.poll_seconds)
            self.look()
            self.submit_all()

    def look(self) -> None:
        """See which jobs have ended."""
        seen = scheduler.look([(self.sweep / name, job) for name, job in self.jobs.items()])
        for name, job in list(self.jobs.items()):
            run = self._state(name, job, seen[job.id])
            self.dead[name] = 0 if run.state in ON_ITS_WAY else self.dead[name] + 1
            if run.state is State.finished or self.dead[name] >= LOOKS:
                self._ended(name, run)

    def cancel(self) -> None:
        """Cancel what is on its way, and give it the time to save."""
        if not self.jobs:
            return
        self._say(f"cancelling {len(self.jobs)} jobs; they save and leave")
        self.waiting.clear()
        for name, job in self.jobs.items():
            scheduler.cancel(self.sweep / name, job)
        deadline = time.monotonic() + SECONDS_TO_LEAVE
        while self.jobs and time.monotonic() < deadline:
            time.sleep(min(self.poll_seconds, 1))
            self.look()

    def _began(self, name: str, job: JobRecord, slot: int | None = None) -> None:
        self.jobs[name], self.dead[name] = job, 0
        self.slots[name] = len(self.slots) if slot is None else slot
        log = shown(job.log(self.sweep / name))
        self._say(f"{self._called(name)}: job {job.id}, log {log}")

    def _ended(self, name: str, run: RunState) -> None:
        job = self.jobs.pop(name)
        self.slots.pop(name)
        words = run.state.value
        if run.state is not State.finished:
            with suppress(UserError):
                scheduler.cancel(self.sweep / name, job)  # ranks that wait for a dead one
            words += f" at step {run.step}" if run.step else ""
            words += f": {last_words(run.log)}" if run.log else ""
        elif run.bits_per_byte is not None:
            words += f", {run.bits_per_byte:.4f} bits per byte"
        self._say(f"{self._called(name)}: {words}")

    def _state(self, name: str, job: JobRecord | None, seen: str) -> RunState:
        return run_state(self.sweep / name, self.varies[name], job, seen)

    def _called(self, name: str) -> str:
        return self.varies[name] or name

    def _say(self, words: str) -> None:
        self.console.print(words, highlight=False, soft_wrap=True, markup=False)


def last_words(log: Path) -> str:
    """The line of a log that most likely says why the run ended."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return [*lines, *errors][-1] if lines else "no word"


@contextmanager
def on_hang_up(error: type[BaseException]) -> Iterator[None]:
    """Within the context SIGTERM and SIGHUP raise `error`, as Ctrl-C raises KeyboardInterrupt."""

    def receive(number: int, frame: FrameType | None) -> None:
        raise error

    previous = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
