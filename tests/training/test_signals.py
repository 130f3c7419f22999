"""Signals ask; the loop decides when it stops."""

import os
import signal

import pytest

from yxanul.training.signals import SIGNALS, stop_on_signals


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2], ids=lambda n: n.name
)
def test_a_signal_only_sets_the_request(number):
    before = handlers()
    with stop_on_signals() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal is number
    assert handlers() == before


def test_a_scheduler_may_insist_without_harm():
    """SLURM sends SIGTERM again; only a second Ctrl-C means now."""
    with stop_on_signals() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGTERM


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_stops_at_once(first):
    before = handlers()

    def press_twice():
        with stop_on_signals():
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert handlers() == before


def test_handlers_come_back_after_an_error():
    before = handlers()

    def fail():
        with stop_on_signals():
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert handlers() == before
