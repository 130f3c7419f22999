"""Steps that go wrong: a loss or gradient that is not finite, and a loss that stands out from those before it.

A loss is a spike if it is far above the last of its stage, in their own standard deviations (as OLMo's optimizer that
skips steps). What is done about it is the user's choice: PaLM went back to a checkpoint and left out the data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yxanul.config import OnSpike

WINDOW = 128
"""Losses that a step's is held against, and the fewest of them with which that is done at all."""
LEAST = 32
SIGMAS = 6.0


@dataclass(frozen=True)
class Guard:
    """What is done about steps that go wrong; those that are not finite are always skipped.

    Attributes:
        max_bad_steps: skipped steps in a row, or returns to a checkpoint in all, that end the run.
    """

    on_spike: OnSpike
    max_bad_steps: int

    @property
    def takes_spikes(self) -> bool:
        """Whether the optimizer takes a step whose loss is a spike."""
        return self.on_spike is OnSpike.warn


def limit(losses: Sequence[float]) -> float:
    """The largest loss that is no spike after `losses`, in their unit; infinite after too few."""
    return float(np.mean(losses) + SIGMAS * np.std(losses)) if len(losses) >= LEAST else math.inf
