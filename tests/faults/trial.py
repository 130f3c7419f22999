"""What a fault is, how often it is tried, and when a run has come through it."""

import math
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any

from yxanul.errors import UserError
from yxanul.training import checkpoint

from .bench import Bench, Ended
from .same import difference, saved, step_of, tensors


class Outcome(Enum):
    """Of a trial.

    recovered: the same command came, without anybody's help, to the end that an undisturbed run has, bit for bit.
    stopped: one line said what is wrong, and when that was mended the same command came to that end.
    lost: neither.
    skipped: this machine cannot have such a fault.
    """

    recovered = "recovered"
    stopped = "stopped"
    lost = "lost"
    skipped = "skipped"


@dataclass(frozen=True)
class Verdict:
    """An outcome and what there is to say of it."""

    outcome: Outcome
    says: str


class CannotHappen(Exception):
    """This machine cannot have such a fault; the text says why."""


@dataclass(frozen=True)
class Case:
    """One trial of a fault.

    Attributes:
        folder: for whatever the trial writes; it is there and empty.
        number: of the trial, from 0: faults of several kinds take turns by it.
        random: for everything that is left to chance; the same for the same number.
    """

    bench: Bench
    folder: Path
    number: int
    random: Random

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        """A cache of this trial's own, for faults that happen to one."""
        return self.folder / "cache"

    def train(self, *overrides: str, **rest: Any) -> Ended:
        """`Bench.train` in this trial's run."""
        return self.bench.train(self.run, *overrides, **rest)

    def end(self) -> str | None:
        """What is wrong with the end that the run has come to."""
        return difference(self.run, self.bench.undisturbed)

    def judge(
        self,
        ended: Ended,
        says: str = "",
        again: Callable[[], Ended] | None = None,
        mend: Callable[[], None] = lambda: None,
        end: Callable[[], str | None] | None = None,
        since: float = math.inf,
    ) -> Verdict:
        """The verdict on a process that the fault has left to itself.

        Args:
            says: what the line of a stop must match.
            again: the same command without the fault, if it is another than `train`.
            mend: takes away the cause of a stop.
            end: instead of `self.end`.
            since: a step: from it on, checkpoints need not be those of the undisturbed run.
        """
        end = end or self.end
        if ended.status == 0:
            return _unless(end(), Verdict(Outcome.recovered, ""))
        if not ended.told or not re.search(says, ended.err):
            return Verdict(Outcome.lost, ended.last_words)
        wrong = _harmed(self.run, self.bench.undisturbed, since)
        if wrong:
            return Verdict(Outcome.lost, wrong)
        mend()
        line = ended.err.strip()
        second = (again or self.train)()
        if second.status:
            return Verdict(Outcome.lost, f"{line}; mended and started again: {second.last_words}")
        return _unless(end(), Verdict(Outcome.stopped, line))


def _unless(wrong: str | None, verdict: Verdict) -> Verdict:
    return Verdict(Outcome.lost, f"{verdict.says}; {wrong}".lstrip("; ")) if wrong else verdict


def _harmed(run: Path, undisturbed: Path, since: float) -> str | None:
    """What is wrong with a run's checkpoints before a step."""
    for path in checkpoint.checkpoints(run / "checkpoints"):
        if step_of(path) >= since:
            break
        try:
            checkpoint.verify(path)
        except UserError as error:
            return str(error)
        same = saved(undisturbed, step_of(path))
        if same.exists() and tensors(path) != tensors(same):
            return f"{path.name} is not that of the undisturbed run"
    return None


Fault = Callable[[Case], Verdict]
FAULTS: dict[str, Fault] = {}
"""All that are tried, by their names; `--only kill` takes all that begin with "kill-"."""


def fault(name: str) -> Callable[[Fault], Fault]:
    """Enters a function among the faults."""

    def enter(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return enter


@dataclass(frozen=True)
class Trial:
    """What one trial came to."""

    fault: str
    number: int
    outcome: Outcome
    says: str
    seconds: float


def attempt(name: str, number: int, seed: int, bench: Bench) -> Trial:
    """Make one trial of a fault; the same (name, number, seed) is the same trial, as far as clocks let it be."""
    folder = bench.folder / "trials" / f"{name}-{number}"
    folder.mkdir(parents=True)
    began = time.perf_counter()
    try:
        verdict = FAULTS[name](Case(bench, folder, number, Random(f"{seed} {name} {number}")))
    except CannotHappen as reason:
        verdict = Verdict(Outcome.skipped, str(reason))
    except (OSError, LookupError, ValueError) as error:  # a run that is not as it must be, to be looked into
        verdict = Verdict(Outcome.lost, f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder)
    return Trial(name, number, verdict.outcome, verdict.says, time.perf_counter() - began)
