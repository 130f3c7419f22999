"""One run of a sweep as a submitit job: the same command that a person would type, in each of its processes."""

import os
import runpy
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from yxanul.files import write_json
from yxanul.sweep.runs import JobRecord

FULL_ERROR = "YXANUL_FULL_ERROR"
"""What the user set HYDRA_FULL_ERROR to: the command sets that itself, and a job is a command of its own."""

STOPPED = 128
"""Exit statuses above it are those of a run that a signal stopped."""


@dataclass(frozen=True)
class CommandJob:
    """Runs `python -m module *arguments` in the process that submitit started.

    The signal that comes before a time limit makes the run save and leave; submitit's own handler then puts the
    job back into the queue, where it runs again as the same command, which goes on from the checkpoint.

    Args:
        module: a command of this package.
        arguments: its overrides.
        folder: the run's.
    """

    module: str
    arguments: tuple[str, ...]
    folder: Path

    def __call__(self) -> int:
        environment = JobEnvironment()
        rank = environment.global_rank
        job = JobRecord(environment.cluster, environment.job_id, environment.num_tasks, environment.hostname)
        outcome = job.outcome(self.folder, rank)
        outcome.unlink(missing_ok=True)  # of the time before it was requeued
        signal.signal(signal.SIGTERM, _leave)  # submitit would ignore it
        try:
            status = self._run()
            if status == STOPPED + signal.SIGUSR2:
                signal.raise_signal(signal.SIGUSR2)  # rank 0 does not return from it: the job is requeued
                return 0
        except Exception:
            write_json(outcome, {"status": 1})
            raise
        write_json(outcome, {"status": status})
        if status:
            sys.exit(status)
        return status

    def checkpoint(self) -> DelayedSubmission:
        """What submitit runs when the job starts again: the same."""
        return DelayedSubmission(self)

    def _run(self) -> int:
        os.environ["HYDRA_FULL_ERROR"] = os.environ.get(FULL_ERROR, "0")
        os.environ.setdefault("COLUMNS", "160")  # a log is no terminal
        sys.argv = [self.module, *self.arguments]
        try:
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)
        except SystemExit as leaving:
            if not isinstance(leaving.code, int) or leaving.code < 0:  # submitit leaves so after a requeue
                raise
            return leaving.code
        return 0


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(STOPPED + number)
