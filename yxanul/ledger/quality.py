"""Time to quality: what a run had cost when it first was as good as a target."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from yxanul.errors import UserError
from yxanul.ledger.runs import Run

AXES = {
    "training_seconds": "seconds of training",
    "prepared_seconds": "seconds with preparation",
    "total_seconds": "seconds in all",
    "tokens": "tokens",
    "bytes": "bytes of text",
    "flops": "FLOPs",
    "device_hours": "device-hours",
}
"""What a cost may be counted in, fields of `Moment` and of `Reached`, in words."""


@dataclass(frozen=True)
class Reached:
    """What a run had cost when it first reached a target; each as in `Moment`, interpolated."""

    training_seconds: float
    prepared_seconds: float
    total_seconds: float
    tokens: float
    bytes: float
    flops: float
    device_hours: float


def reach(run: Run, target: float) -> Reached | None:
    """What `run` had cost when it first was at or below `target` bits per byte; None if it never was.

    Each cost is interpolated linearly in bits per byte, between the first evaluation at or below the target and the
    one before it. Where there is none before it, its own costs are returned: an upper bound (`is_bound`). That it gets
    worse again afterwards changes nothing.
    """
    after = next((i for i, moment in enumerate(run.moments) if moment.bits_per_byte <= target), None)
    if after is None:
        return None
    there, before = run.moments[after], run.moments[max(after - 1, 0)]
    fall = before.bits_per_byte - there.bits_per_byte
    way = (before.bits_per_byte - target) / fall if after else 1.0
    return Reached(**{axis: (1 - way) * getattr(before, axis) + way * getattr(there, axis) for axis in AXES})


def is_bound(run: Run, target: float) -> bool:
    """Whether `reach` is an upper bound: the first evaluation was as good as that, and the run perhaps before."""
    return bool(run.moments) and run.moments[0].bits_per_byte <= target


def default_target(runs: Sequence[Run]) -> float:
    """The bits per byte that every run reaches, of those with an evaluation: the worst of their best.

    Raises:
        UserError: no run has an evaluation.
    """
    bests = [run.best for run in runs if run.best is not None]
    if not bests:
        raise UserError("no run has been evaluated yet: wait for the first evaluation, or set evaluate.every lower")
    return max(bests)


def comparable(runs: Sequence[Run]) -> str | None:
    """None if all runs were judged alike; else one line naming those judged unlike the most.

    A run without an evaluation was not judged at all, and is passed over.
    """
    judged = [run for run in runs if run.moments]
    counts = Counter(run.held_out for run in judged)
    if len(counts) < 2:
        return None
    usual = counts.most_common(1)[0][0]
    model = next(run.name for run in judged if run.held_out == usual)
    others = ", ".join(run.name for run in judged if run.held_out != usual)
    return f"judged on another held-out text or context than {model}, so not to be compared with it: {others}"
