"""A sink in the background: nothing is lost where it is merely slow, and nobody waits where it hangs."""

import logging
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from yxanul.tracking import BackgroundSink, Record, SafeSink, Tracker, read_rows

ROOT = Path(__file__).parents[2]
ROWS = [{"kind": "train", "step": step, "loss": 1 / step} for step in range(1, 201)]
SUMMARY = {"bits_per_byte": 1.0}


class Recorder:
    """Remembers what it is shown; `pause` is called before each thing that it does, with its name."""

    def __init__(self, pause=lambda name: None) -> None:
        self.pause = pause
        self.rows: list[dict] = []
        self.summaries: list[dict | None] = []
        self.pause("init")

    def log(self, row):
        self.pause("log")
        self.rows.append(row)

    def close(self, summary):
        self.pause("close")
        self.summaries.append(summary)


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_all_rows_are_shown_in_order_before_close_returns(caplog):
    slow = Recorder(lambda name: time.sleep(0.001))
    sink = SafeSink("slow", partial(BackgroundSink, lambda: slow))
    for row in ROWS:
        sink.log(row)
    sink.close(SUMMARY)
    assert slow.rows == ROWS and slow.summaries == [SUMMARY]
    assert warnings(caplog) == []


def test_it_is_built_and_used_in_one_thread_of_its_own():
    threads = set()
    sink = BackgroundSink(lambda: Recorder(lambda name: threads.add(threading.current_thread())))
    sink.log(ROWS[0])
    sink.close(None)
    (thread,) = threads
    assert thread is not threading.current_thread() and thread.daemon


FULL = "tracking: stuck failed and is dropped (TimeoutError: 10 rows wait for it; metrics.jsonl has everything)"
NO_END = (
    "tracking: stuck failed and is dropped (TimeoutError: it does not end in 0.2 seconds; metrics.jsonl has everything)"
)


@pytest.mark.parametrize(
    ("hangs_in", "rows", "warning"),
    [
        ("init", ROWS, FULL),
        ("log", ROWS, FULL),
        ("init", ROWS[:3], NO_END),
        ("log", ROWS[:3], NO_END),
        ("close", ROWS[:3], NO_END),
    ],
)
def test_a_sink_that_hangs_is_dropped_with_one_warning(tmp_path, caplog, hangs_in, rows, warning):
    released, left = threading.Event(), threading.Event()

    def hang(name: str) -> None:
        if name == hangs_in:
            released.wait()
            left.set()
            raise RuntimeError("too late")

    stuck = partial(BackgroundSink, lambda: Recorder(hang), room=10, seconds=0.2)
    healthy = Recorder()
    tracker = Tracker(
        Record(tmp_path / "metrics.jsonl"),
        [SafeSink("stuck", stuck), SafeSink("healthy", partial(BackgroundSink, lambda: healthy))],
    )
    began = time.monotonic()
    for row in rows:
        tracker.log(row)
    tracker.close(SUMMARY)
    assert time.monotonic() - began < 5
    assert read_rows(tmp_path / "metrics.jsonl") == healthy.rows == rows
    assert healthy.summaries == [SUMMARY]
    released.set()
    assert left.wait(5)
    tracker.close(None)
    assert warnings(caplog) == [warning]


@pytest.mark.parametrize("raises_in", ["init", "log", "close"])
def test_an_interrupt_is_for_the_thread_that_trains(raises_in):
    def interrupt(name: str) -> None:
        if name == raises_in:
            raise KeyboardInterrupt

    sink = SafeSink("sink", partial(BackgroundSink, lambda: Recorder(interrupt)))

    def use() -> None:
        sink.log(ROWS[0])
        sink.close(None)

    with pytest.raises(KeyboardInterrupt):
        use()


@pytest.mark.parametrize("hangs_in", ["init", "log", "close"])
def test_the_process_ends_although_a_sink_hangs(tmp_path, hangs_in):
    script = f"""
import sys, time
from functools import partial
from pathlib import Path
from yxanul.tracking import BackgroundSink, Record, SafeSink, Tracker

class Stuck:
    def __init__(self): self.hang("init")
    def log(self, row): self.hang("log")
    def close(self, summary): self.hang("close")
    def hang(self, name):
        if name == {hangs_in!r}:
            time.sleep(600)

sink = SafeSink("stuck", partial(BackgroundSink, Stuck, seconds=0.2))
tracker = Tracker(Record(Path(sys.argv[1])), [sink])
for step in range(1, 101):
    tracker.log(dict(kind="train", step=step))
tracker.close(dict(bits_per_byte=1.0))
print("the end")
"""
    path = tmp_path / "metrics.jsonl"
    ended = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "the end\n")
    assert ended.stderr == f"{NO_END}\n"
    assert len(read_rows(path)) == 100
