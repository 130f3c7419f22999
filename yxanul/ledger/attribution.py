"""What each choice was worth: the factors of a speed-up to a target, and how sure they are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean, stdev

from yxanul.errors import UserError
from yxanul.ledger.quality import Reached

Seeds = Mapping[int, Reached | None]
"""What a recipe cost to the target under each seed; None where it never arrived."""

Recipe = tuple[str, Seeds]
"""What a recipe is called, and its costs."""

SPENT = ("training_seconds", "prepared_seconds", "total_seconds", "device_hours", "flops")
"""What a speed-up may be counted in."""

ROUNDING = 1e-9
"""Ratios no further from 1 are taken for 1."""


@dataclass(frozen=True)
class Estimate:
    """A geometric mean over pairs of runs.

    Attributes:
        ratio: how many times as fast; below 1 it is slower.
        low, high: the 95% interval by Student's t over the logarithms; None with fewer than two pairs.
    """

    ratio: float
    low: float | None
    high: float | None

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 1, by more than rounding; False if there is none."""
        if self.low is None or self.high is None:
            return False
        # Costs that are equal by design, as FLOPs a byte are, differ in their last bits with every seed alike.
        return self.low > 1 + ROUNDING or self.high < 1 - ROUNDING


@dataclass(frozen=True)
class Factor:
    """What a choice was worth, in times as fast to the target.

    Attributes:
        total: cost without the choice by cost with it; learning times throughput.
        learning: by the fewer bytes that are needed.
        throughput: by the more bytes for each second, device-hour or FLOP.
        pairs: of runs with the same seed, that it was measured on.
    """

    name: str
    total: Estimate
    learning: Estimate
    throughput: Estimate
    pairs: int


@dataclass(frozen=True)
class Shares:
    """What each choice of a full grid was worth, on average over all orders of adding them.

    Attributes:
        factors: of the choices; their product is the whole.
        whole: the recipe with all choices against that with none.
    """

    factors: list[Factor]
    whole: Factor


def factor(name: str, before: Seeds, after: Seeds, axis: str = "training_seconds") -> Factor | None:
    """How many times as fast `after` reaches the target as `before`, over the seeds with which both do; None if none.

    Args:
        axis: what the cost is counted in, one of `SPENT`.

    Raises:
        UserError: another axis, or a run that was at the target at no cost.
    """
    _refuse_others(axis)
    pairs = [(one, other) for seed, one in before.items() if one and (other := after.get(seed))]
    if not pairs:
        return None
    total = [_log(getattr(one, axis)) - _log(getattr(other, axis)) for one, other in pairs]
    learning = [_log(one.bytes) - _log(other.bytes) for one, other in pairs]
    return _factor(name, total, learning)


def against_first(recipes: Sequence[Recipe], axis: str = "training_seconds") -> list[Factor | None]:
    """Each recipe after the first against the first; None if they share no seed. `axis` and errors: as of `factor`."""
    return [factor(name, recipes[0][1], after, axis) for name, after in recipes[1:]]


def ladder(rungs: Sequence[Recipe], axis: str = "training_seconds") -> list[Factor | None]:
    """Each rung after the first against the one before it; None if they share no seed.

    If all agree in their seeds, the product is the last against the first. `axis` and errors: as of `factor`.
    """
    return [factor(name, before, after, axis) for (_, before), (name, after) in pairwise(rungs)]


def leave_one_out(recipes: Sequence[Recipe], axis: str = "training_seconds") -> list[Factor | None]:
    """What each choice is worth from the other end: the first recipe, which has all, against each that lacks one.

    None if they share no seed. `axis` and errors: as of `factor`.
    """
    return [factor(name, without, recipes[0][1], axis) for name, without in recipes[1:]]


def shapley(costs: Mapping[frozenset[str], float]) -> dict[str, float]:
    """How many times as fast each choice makes a recipe, on average over all orders of adding them one by one.

    Shapley, "A value for n-person games" (1953), of the logarithm of the cost; the ratios' product is the cost of the
    recipe with none of the choices by that with all of them.

    Args:
        costs: of the recipe with each combination of the choices, in any unit.

    Raises:
        UserError: a combination is missing, or costs nothing.
    """
    choices = sorted(frozenset[str]().union(*costs))
    for chosen in _combinations(choices):
        if chosen not in costs:
            named = " + ".join(sorted(chosen)) or f"the recipe without {', '.join(choices) or 'any choice'}"
            raise UserError(f"the grid of combinations has no cost of {named}: run it, or leave out a choice")
    logs = {chosen: _log(cost) for chosen, cost in costs.items()}
    orders = [len(choices) * math.comb(len(choices) - 1, size) for size in range(len(choices))]
    return {
        choice: math.exp(
            math.fsum((logs[rest] - logs[rest | {choice}]) / orders[len(rest)] for rest in logs if choice not in rest)
        )
        for choice in choices
    }


def shares(grid: Mapping[frozenset[str], Seeds], axis: str = "training_seconds") -> Shares | None:
    """`shapley` seed by seed, over the seeds with which all recipes reach the target; None if there is none.

    `axis` and errors: as of `factor` and of `shapley`.
    """
    _refuse_others(axis)
    first, *others = grid.values()
    seeds = [seed for seed in first if first[seed] and all(other.get(seed) for other in others)]
    if not seeds:
        return None
    total, learning = (
        [shapley({chosen: getattr(costs[seed], kind) for chosen, costs in grid.items()}) for seed in seeds]
        for kind in (axis, "bytes")
    )
    factors = [
        _factor(choice, [_log(each[choice]) for each in total], [_log(each[choice]) for each in learning])
        for choice in total[0]
    ]
    bare = {seed: grid[frozenset()][seed] for seed in seeds}
    whole = factor("all of them", bare, grid[frozenset(total[0])], axis)
    return Shares(factors, whole)


def student_t(freedom: int) -> float:
    """The t within which, to both sides, 95% of Student's distribution with `freedom` >= 1 degrees of freedom lies.

    By bisection of the exact finite series of Abramowitz and Stegun, Handbook of Mathematical Functions (1964),
    26.7.3 and 26.7.4, in the angle whose tangent is t / sqrt(freedom).
    """
    low, high = 0.0, math.pi / 2
    while low < (angle := (low + high) / 2) < high:
        low, high = (angle, high) if _within(angle, freedom) < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(high)


def _within(angle: float, freedom: int) -> float:
    """The probability that Student's t is, to both sides, below sqrt(freedom) * tan(angle)."""
    odd = freedom % 2
    term, series = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1, freedom // 2 + 1):
        series += term
        term *= (2 * k - 1 + odd) / (2 * k + odd) * math.cos(angle) ** 2
    series *= math.sin(angle)
    return 2 / math.pi * (angle + series) if odd else series


def _refuse_others(axis: str) -> None:
    if axis not in SPENT:
        raise UserError(f"axis={axis}: a speed-up cannot be counted in this; choose one of {', '.join(SPENT)}")


def _factor(name: str, total: list[float], learning: list[float]) -> Factor:
    """From the logarithms of each pair."""
    throughput = [whole - part for whole, part in zip(total, learning, strict=True)]
    return Factor(name, _estimate(total), _estimate(learning), _estimate(throughput), len(total))


def _estimate(logs: list[float]) -> Estimate:
    mean = fmean(logs)
    if len(logs) < 2:
        return Estimate(math.exp(mean), None, None)
    margin = student_t(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return Estimate(math.exp(mean), math.exp(mean - margin), math.exp(mean + margin))


def _log(cost: float) -> float:
    if cost <= 0:
        raise UserError(f"a cost of {cost:g} to the target has no ratio to others: choose a lower target")
    return math.log(cost)


def _combinations(choices: list[str]) -> Iterator[frozenset[str]]:
    """All of them, the smallest first."""
    for size in range(len(choices) + 1):
        yield from map(frozenset, combinations(choices, size))
