"""What a look at the machine or the run finds."""

from dataclasses import dataclass
from enum import Enum

BROKEN = (RuntimeError, OSError, ImportError, AssertionError)
"""What torch and the libraries for a GPU raise where a driver, a library or a build does not fit."""


class State(Enum):
    ok = "ok"
    info = "info"
    problem = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic, subject: what it is about.
        words: what was found; of a problem the whole line, with what to do.
    """

    topic: str
    subject: str
    state: State
    words: str


Row = tuple[str, State, str]
"""A finding without its topic."""


def problems(findings: list[Finding]) -> list[Finding]:
    """Those that would stop the run from starting."""
    return [finding for finding in findings if finding.state is State.problem]


def first_line(error: Exception) -> str:
    """What an error says in its first line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def known(good: bool) -> State:
    """Of something that is no problem: good to have, or worth knowing."""
    return State.ok if good else State.info
