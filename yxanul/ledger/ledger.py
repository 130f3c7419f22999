"""The ledger of a set of runs: what each cost to the same quality, and what each choice was worth."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from yxanul.composition import identity
from yxanul.ledger.attribution import Factor, factor
from yxanul.ledger.quality import Reached, comparable, default_target, reach
from yxanul.ledger.runs import Run

SEED = re.compile(r"\s*\bseed=\d+\b|-seed\d+-[0-9a-f]{8}$")
"""In the names of runs, what tells seeds apart."""


class Against(Enum):
    """What each choice is compared with."""

    first = "first"
    previous = "previous"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, and what each had cost at the target."""

    name: str
    runs: list[Run]
    reached: list[Reached | None]

    @property
    def by_seed(self) -> dict[int, Reached | None]:
        return {run.config["seed"]: reached for run, reached in zip(self.runs, self.reached, strict=True)}


@dataclass(frozen=True)
class Ledger:
    """What a report says of runs.

    Attributes:
        target: bits per byte.
        axis: what a cost is counted in.
        groups: in the order of their first runs; the first is the baseline.
        against: what `factors` compare with.
        factors: of each group after the first by its place in `groups`; groups that never arrive have none.
        warning: why the runs are not to be compared; None if they are.
    """

    target: float
    axis: str
    groups: list[Group]
    against: Against
    factors: dict[int, Factor]
    warning: str | None


def make_ledger(runs: Sequence[Run], target: float | None, axis: str, against: Against) -> Ledger:
    """The ledger of runs at `target` bits per byte, or at what all of them reach.

    Raises:
        UserError: no run has an evaluation.
    """
    target = default_target(runs) if target is None else target
    groups = [Group(name, members, [reach(run, target) for run in members]) for name, members in _groups(runs)]
    factors = {}
    for index in range(1, len(groups)):
        base = groups[0 if against is Against.first else index - 1]
        found = factor(groups[index].name, base.by_seed, groups[index].by_seed, axis)
        if found:
            factors[index] = found
    return Ledger(target, axis, groups, against, factors, comparable(runs))


def _groups(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    members: dict[str, list[Run]] = {}
    for run in runs:
        choices = identity(run.config) | {"seed": None}
        members.setdefault(json.dumps(choices, sort_keys=True), []).append(run)
    return [(SEED.sub("", group[0].name) or group[0].name, group) for group in members.values()]
