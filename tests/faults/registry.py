"""All faults: importing their modules enters them."""

from . import damage, disks, kills, nonfinite, surroundings
from .trial import FAULTS, Outcome, Trial, attempt

__all__ = ["FAULTS", "Outcome", "Trial", "attempt", "damage", "disks", "kills", "nonfinite", "surroundings"]
