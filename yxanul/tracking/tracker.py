"""One call for the training loop: the record first, then everyone who watches."""

from collections.abc import Sequence

from yxanul.tracking.record import Record
from yxanul.tracking.rows import Row
from yxanul.tracking.sink import SafeSink


class Tracker:
    """Writes each row to the record, then shows it to the sinks.

    An error of the record is an error of the run and is raised; sinks have none, they are safe. Without a record,
    as in all processes of a run but the first, rows go to the sinks alone.
    """

    def __init__(self, record: Record | None, sinks: Sequence[SafeSink]) -> None:
        self._record = record
        self._sinks = sinks

    def log(self, row: Row) -> None:
        """Record a row, then show it."""
        if self._record is not None:
            self._record.append(row)
        for sink in self._sinks:
            sink.log(row)

    def go_back(self, step: int) -> None:
        """Forget the rows after a step that training went back to; sinks have shown them already."""
        if self._record is not None:
            self._record.truncate_after(step)

    def close(self, summary: Row | None) -> None:
        """End all sinks. Call it on every way out: the terminal's cursor is hidden until then.

        `summary` is the result of a finished run, None if the run was cut short.
        """
        if self._record is not None:
            self._record.close()
        for sink in self._sinks:
            sink.close(summary)
