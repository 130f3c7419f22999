import io

import pytest
from rich.console import Console

from yxanul.tracking import ConsoleSink
from yxanul.tracking.console import _clock

TOTAL_STEPS = 460


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("yxanul.tracking.console.time.monotonic", lambda: Clock.now)
    return Clock


def train_row(step: int, **changes):
    row = {
        "kind": "train",
        "step": step,
        "stage": 1 if step < 15 else 2,
        "seq_len": 32 if step < 15 else 64,
        "tokens": step * 1000,
        "bytes": step * 5000,
        "loss": 4.5123,
        "bits_per_byte": 1.934,
        "lr": 1e-3,
        "grad_norm": 0.7,
        "tokens_per_second": 2310.4,
        "bytes_per_second": 11000.0,
        "mfu": 0.42,
        "memory_gb": 2.0,
        "seconds": step * 0.5,
    }
    return row | changes


EVAL_ROW = {
    "kind": "eval",
    "step": 20,
    "tokens": 20_000,
    "bytes": 100_000,
    "bits_per_byte": 1.87123,
    "perplexity": 61.304,
    "eval_bytes": 2_100_000,
    "seconds": 3.0,
}

PLAIN_LINES = """\
stage 1 of 2: sequences of 32 tokens
step   1/460  stage 1 (32)    loss 4.512   1.93 bits/byte  2,310 tok/s    MFU 42%  ETA -:--
step  10/460  stage 1 (32)    loss 4.512   1.93 bits/byte  2,310 tok/s    MFU 42%  ETA 3:45
stage 2 of 2: sequences of 64 tokens
step  15/460  stage 2 (64)    loss 4.512   1.93 bits/byte  2,310 tok/s    MFU 42%  ETA 3:42
step  20/460  stage 2 (64)    loss 4.512   1.93 bits/byte  2,310 tok/s    MFU 42%  ETA 3:40
eval  20/460  held-out 1.8712 bits/byte  perplexity 61.30  on 2.1 MB
note  20/460  fp8 [not supported] here
finished  1.8000 bits/byte  460,000 tokens  in 1:01:12
"""


def sink_and_output(log_every: int = 10, **console):
    output = io.StringIO()
    sink = ConsoleSink(
        total_tokens=TOTAL_STEPS * 1000,
        total_steps=TOTAL_STEPS,
        num_stages=2,
        log_every=log_every,
        console=Console(file=output, **console),
    )
    return sink, output


def test_plain_lines_show_the_figures_and_the_stages(clock):
    sink, output = sink_and_output(force_terminal=False)
    for step in range(1, 21):
        sink.log(train_row(step))
        clock.now += 0.5
    sink.log(EVAL_ROW)
    sink.log({"kind": "event", "step": 20, "message": "fp8 [not supported] here"})
    sink.close({"bits_per_byte": 1.8, "tokens": 460_000, "seconds": 3672.0})
    assert output.getvalue() == PLAIN_LINES


def test_the_last_step_is_shown_and_a_resumed_run_starts_where_it_is(clock):
    sink, output = sink_and_output(log_every=100, force_terminal=False)
    for step in range(441, TOTAL_STEPS + 1):
        sink.log(train_row(step))
        clock.now += 0.5
    sink.close(None)
    lines = output.getvalue().splitlines()
    assert lines[0] == "stage 2 of 2: sequences of 64 tokens"
    assert lines[1].startswith("step 441/460") and lines[1].endswith("ETA -:--")
    assert lines[2].startswith("step 460/460") and lines[2].endswith("ETA 0:00")
    assert len(lines) == 3


def test_unknown_and_broken_figures_still_print():
    sink, output = sink_and_output(force_terminal=False)
    sink.log(train_row(1, mfu=None, loss=float("nan")))
    sink.log({"kind": "eval", "step": 1, "bits_per_byte": None, "perplexity": float("inf")})
    assert "loss nan" in output.getvalue()
    assert "MFU" not in output.getvalue()
    assert "perplexity inf" in output.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_shows_a_bar_with_the_figures(width):
    sink, output = sink_and_output(force_terminal=True, width=width, color_system=None)
    for step in range(1, 231):
        sink.log(train_row(step))
    sink.log(EVAL_ROW)
    sink.close({"bits_per_byte": 1.8})
    text = output.getvalue()
    assert "stage 1 of 2: sequences of 32 tokens\n" in text
    assert "stage 2 of 2: sequences of 64 tokens\n" in text
    assert "held-out 1.8712 bits/byte" in text
    assert "finished  1.8000 bits/byte" in text
    last_bar = text[text.rindex("stage 2/2 (64)") :].splitlines()
    assert " 50% " in last_bar[0] and "ETA 0:0" in last_bar[0]
    for figure in ("step 230/460", "loss 4.512", "1.93 bits/byte", "2,310 tok/s", "MFU 42%"):
        assert figure in last_bar[1]
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # cursor hidden, shown again


@pytest.mark.parametrize(("seconds", "text"), [(None, "-:--"), (0, "0:00"), (72.4, "1:12"), (3599.6, "1:00:00")])
def test_clock(seconds, text):
    assert _clock(seconds) == text
