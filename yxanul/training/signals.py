"""Requests to stop: a signal asks, the loop finishes its micro-step, saves and leaves."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from yxanul.training.distributed import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Which signal asked the run to stop, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def asked(self, world: World) -> bool:
        """Whether any process of the run was asked; all of them then know by which signal. All must call this."""
        number = world.largest(self.signal or 0)
        if number and self.signal is None:
            self.signal = signal.Signals(number)
        return number > 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # pressed twice: now
        self.signal = signal.Signals(number)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the context, SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 only set the request."""
    request = StopRequest()
    previous = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
