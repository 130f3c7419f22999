"""A sink in a thread of its own: a dead network or a disk that hangs costs it rows, and training no time."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue

from yxanul.tracking.rows import Row
from yxanul.tracking.sink import Sink

QUEUED_ROWS = 10_000  # some 20 MB; more than the fastest runs log while wandb begins
CLOSE_SECONDS = 60.0  # for a slow import, what is still queued, and the sink's own end


class BackgroundSink:
    """Builds a sink and shows it the rows, in their order, in a daemon thread: the process can end without it.

    Args:
        build: makes the sink.
        room: rows that may be queued; a sink that is so far behind does not move.
        seconds: that `close` waits at most.
    """

    def __init__(self, build: Callable[[], Sink], room: int = QUEUED_ROWS, seconds: float = CLOSE_SECONDS) -> None:
        self._room, self._seconds = room, seconds
        self._rows: SimpleQueue[Row | None] = SimpleQueue()
        self._summary: Row | None = None
        self._ended: Future[None] = Future()
        threading.Thread(target=self._show, args=(build,), daemon=True).start()

    def log(self, row: Row) -> None:
        """Queue one row.

        Raises:
            TimeoutError: too many are queued.
            BaseException: what building the sink raised, or showing it an earlier row.
        """
        if self._ended.done():
            self._ended.result()
        if self._rows.qsize() >= self._room:
            raise TimeoutError(f"{self._room:,} rows wait for it; metrics.jsonl has everything")
        self._rows.put(row)

    def close(self, summary: Row | None) -> None:
        """Wait until the sink has shown all rows and ended.

        Raises:
            TimeoutError: it has not in `seconds`.
            BaseException: what the sink raised.
        """
        self._summary = summary
        self._rows.put(None)
        if not wait([self._ended], self._seconds).done:
            raise TimeoutError(f"it does not end in {self._seconds:g} seconds; metrics.jsonl has everything")
        self._ended.result()

    def _show(self, build: Callable[[], Sink]) -> None:
        try:
            sink = build()
            while (row := self._rows.get()) is not None:
                sink.log(row)
            sink.close(self._summary)
            self._ended.set_result(None)
        except BaseException as error:  # an interrupt too is for the thread that trains
            self._ended.set_exception(error)
