"""All probes, one after the other: what this machine can do, and whether the composed run could start on it.

Every finding is of a topic; a problem is what would stop the run, in words that say what to do.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from yxanul.config import Config
from yxanul.diagnosis import composed, machine
from yxanul.diagnosis.composed import Run
from yxanul.diagnosis.findings import BROKEN, Finding, Row, State, first_line, problems
from yxanul.errors import UserError


def diagnose(config: Config, folder: Path) -> list[Finding]:
    """All findings, by topic.

    Args:
        folder: of the run.
    """
    run = Run(config, folder)
    findings: list[Finding] = []
    with warnings.catch_warnings(action="ignore"):  # torch's on a driver; the finding says why CUDA is not there
        for topic, probe in (*machine.PROBES, *composed.PROBES):
            told = {finding.words for finding in problems(findings)}
            found = [Finding(topic, *row) for row in _safely(probe, run)]
            findings += [finding for finding in found if finding.words not in told]
    return findings


def _safely(probe: Callable[[Run], Iterator[Row]], run: Run) -> Iterator[Row]:
    """The rows of a probe; what it raises is a problem."""
    try:
        yield from probe(run)
    except UserError as error:
        yield getattr(error, "key", ""), State.problem, str(error)
    except BROKEN as error:
        yield "", State.problem, f"{type(error).__name__}: {first_line(error)}; mend that, or choose hardware=cpu"
