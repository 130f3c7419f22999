import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from yxanul.tracking import BackgroundSink, Record, SafeSink, Tracker, read_rows

ROOT = Path(__file__).parents[2]
ROW = {"kind": "train", "step": 1, "loss": 2.0}


class Faulty:
    """A sink that fails where it is told to, and remembers its calls."""

    def __init__(self, fails_in: str) -> None:
        self.fails_in = fails_in
        self.calls: list[str] = []
        self._call("init")

    def log(self, row):
        self._call("log")

    def close(self, summary):
        self._call("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_in:
            raise RuntimeError("no\nnetwork")


@pytest.mark.parametrize("where", [lambda build: build, lambda build: partial(BackgroundSink, build)])
@pytest.mark.parametrize(
    ("fails_in", "calls"),
    [
        ("init", []),
        ("log", ["init", "log"]),
        ("close", ["init", "log", "log", "close"]),
        ("never", ["init", "log", "log", "close"]),
    ],
)
def test_a_failing_sink_is_dropped_with_one_warning(tmp_path, caplog, fails_in, calls, where):
    made: list[Faulty] = []

    def build() -> Faulty:
        made.append(Faulty(fails_in))
        return made[-1]

    healthy = Faulty("never")
    tracker = Tracker(
        Record(tmp_path / "metrics.jsonl"),
        [SafeSink("faulty", where(build)), SafeSink("healthy", lambda: healthy)],
    )
    tracker.log(ROW)
    tracker.log(ROW)
    tracker.close({"bits_per_byte": 1.0})
    tracker.close(None)

    assert [sink.calls for sink in made] == ([calls] if calls else [])
    assert healthy.calls == ["init", "log", "log", "close"]
    assert read_rows(tmp_path / "metrics.jsonl") == [ROW, ROW]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    if fails_in == "never":
        assert warnings == []
    else:
        assert warnings == ["tracking: faulty failed and is dropped (RuntimeError: no network)"]


def test_an_error_of_the_record_is_raised_and_shown_to_no_sink(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    sink = Faulty("never")
    tracker = Tracker(Record(tmp_path / "metrics.jsonl"), [SafeSink("sink", lambda: sink)])
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        tracker.log(ROW)
    assert sink.calls == ["init"]


def test_an_interrupt_is_not_swallowed():
    def build():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SafeSink("sink", build)


def test_a_closed_pipe_does_not_stop_the_run(tmp_path):
    script = """
import sys
from functools import partial
from pathlib import Path
from rich.console import Console
from yxanul.tracking import ConsoleSink, Record, SafeSink, Tracker
sink = partial(ConsoleSink, 100, 100, 1, 1, Console())
tracker = Tracker(Record(Path(sys.argv[1])), [SafeSink("console", sink)])
input()
for step in range(1, 101):
    tracker.log(dict(kind="train", step=step, stage=1, seq_len=8, tokens=step, loss=1.0))
"""
    path = tmp_path / "metrics.jsonl"
    run = subprocess.Popen(
        [sys.executable, "-c", script, path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    run.stdout.close()
    run.stdin.write(b"\n")
    run.stdin.close()
    warning = run.stderr.read().decode()
    run.stderr.close()
    run.wait()
    assert warning.splitlines() == ["tracking: console failed and is dropped (SystemExit: 1)"]
    assert len(read_rows(path)) == 100
