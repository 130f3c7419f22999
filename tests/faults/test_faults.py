"""Under every fault a run recovers to the bit, or stops with one line and nothing lost."""

import pytest

from .bench import Bench
from .registry import FAULTS, Outcome, attempt

SEED = 1
SHORT = {"damage-checkpoint": 2, "damage-run": 2}
"""Trials of the short form, where they are more than one."""
LONG = 50


def check(bench: Bench, name: str, numbers: range) -> None:
    trials = [attempt(name, number, SEED, bench) for number in numbers]
    lost = [(each.number, each.says) for each in trials if each.outcome is Outcome.lost]
    assert not lost
    if any(each.outcome is Outcome.skipped for each in trials):
        pytest.skip(trials[0].says)


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost(bench, name):
    check(bench, name, range(SHORT.get(name, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_in_many_trials(bench, name):
    check(bench, name, range(LONG))
