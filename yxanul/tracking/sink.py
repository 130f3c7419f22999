"""What a sink is, and the guard that keeps a failing one from stopping a run."""

import logging
from collections.abc import Callable
from typing import Any, Protocol

from yxanul.tracking.rows import Row

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Shows the rows of a run somewhere. It may fail, and it may miss rows: it is no record."""

    def log(self, row: Row) -> None:
        """Show one row."""

    def close(self, summary: Row | None) -> None:
        """End. `summary` is the result of a finished run, None if the run was cut short."""


class SafeSink:
    """A sink that cannot raise: at its first error it warns in one line and is dropped.

    It takes what builds the sink, not the sink, for building one fails most often: a package
    that is missing, a network that is down.
    """

    def __init__(self, name: str, build: Callable[[], Sink]) -> None:
        self._name = name
        self._sink: Sink | None = None
        self._sink = self._guard(build)

    def log(self, row: Row) -> None:
        if self._sink is not None:
            self._guard(self._sink.log, row)

    def close(self, summary: Row | None) -> None:
        if self._sink is not None:
            self._guard(self._sink.close, summary)
            self._sink = None

    def _guard(self, action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        # rich answers a broken pipe (`... | head`) with SystemExit; training is to go on.
        except (Exception, SystemExit) as error:
            self._sink = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning("tracking: %s failed and is dropped (%s)", self._name, reason)
            return None
