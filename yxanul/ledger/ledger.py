"""The ledger of a set of runs: what each cost to the same quality, and what each choice was worth."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from yxanul.errors import UserError
from yxanul.ledger.attribution import Factor, Shares, against_first, ladder, leave_one_out, shares
from yxanul.ledger.grid import find_choices
from yxanul.ledger.names import named, recipe_name
from yxanul.ledger.quality import Reached, comparable, default_target, reach
from yxanul.ledger.runs import Run


class Against(Enum):
    """What each choice is compared with; if without it, the first recipe has all of them, and each other lacks one."""

    first = "first"
    previous = "previous"
    without = "without"


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
        factors: of each group; the first has none, nor have groups that never arrive.
        shares: of the choices that the groups are a full grid of, if asked for.
        warning: why the runs are not to be compared; None if they are.
    """

    target: float
    axis: str
    groups: list[Group]
    against: Against
    factors: list[Factor | None]
    shares: Shares | None
    warning: str | None


COMPARISONS = {Against.first: against_first, Against.previous: ladder, Against.without: leave_one_out}


def make_ledger(runs: Sequence[Run], target: float | None, axis: str, against: Against, shapley: bool) -> Ledger:
    """The ledger of runs at `target` bits per byte, or at what all of them reach; with Shapley's shares, or without.

    Raises:
        UserError: no run has an evaluation; for shares, the runs are no full grid of choices with two values each, or
            with no seed all of them reach the target.
    """
    target = default_target(runs) if target is None else target
    groups = [Group(name, members, [reach(run, target) for run in members]) for name, members in _groups(runs)]
    factors = COMPARISONS[against]([(group.name, group.by_seed) for group in groups], axis)
    found = _shares(groups, target, axis) if shapley else None
    return Ledger(target, axis, groups, against, [None, *factors], found, comparable(runs))


def _groups(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    members: dict[str, list[Run]] = {}
    for run in named(runs):
        members.setdefault(json.dumps(run.recipe, sort_keys=True), []).append(run)
    return [(recipe_name(group[0]), group) for group in members.values()]


def _shares(groups: Sequence[Group], target: float, axis: str) -> Shares:
    chosen = find_choices([group.name for group in groups], [group.runs[0].recipe for group in groups])
    found = shares({choices: group.by_seed for choices, group in zip(chosen, groups, strict=True)}, axis)
    if found is None:
        seeds = sorted({seed for group in groups for seed in group.by_seed})
        lacking = {seed: [group.name for group in groups if not group.by_seed.get(seed)] for seed in seeds}
        seed = min(seeds, key=lambda each: len(lacking[each]))
        raise UserError(
            f"with no seed all recipes reach {target:.4f} bits per byte; with seed {seed} these do not: "
            f"{', '.join(lacking[seed])}; train them longer, or choose a higher target"
        )
    return found
