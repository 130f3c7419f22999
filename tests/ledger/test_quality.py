"""Time to quality: interpolated at the first crossing, for every kind of cost."""

from dataclasses import asdict, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yxanul.errors import UserError
from yxanul.ledger.quality import AXES, Reached, comparable, default_target, is_bound, reach
from yxanul.ledger.runs import Moment

qualities = st.lists(st.floats(0.5, 8), min_size=1, max_size=12)


def moment(seconds: int, bits_per_byte: float) -> Moment:
    """After so many seconds; every cost is another multiple of them."""
    return Moment(
        step=seconds,
        tokens=100 * seconds,
        bytes=400 * seconds,
        flops=1e12 * seconds,
        training_seconds=float(seconds),
        prepared_seconds=seconds + 7.0,
        total_seconds=2.0 * seconds + 7,
        device_hours=8 * seconds / 3600,
        bits_per_byte=bits_per_byte,
    )


def moments(bits: list[float]) -> list[Moment]:
    return [moment(10 * number, value) for number, value in enumerate(bits, start=1)]


def test_costs_are_fields_of_both():
    assert list(AXES) == [field.name for field in fields(Reached)]
    assert set(AXES) <= {field.name for field in fields(Moment)}


def test_halfway_between_two_evaluations(make_run):
    reached = reach(make_run(moments([3.0, 2.0, 1.0])), 1.5)
    assert asdict(reached) == pytest.approx(
        {
            "training_seconds": 25,
            "prepared_seconds": 32,
            "total_seconds": 57,
            "tokens": 2500,
            "bytes": 10_000,
            "flops": 25e12,
            "device_hours": 200 / 3600,
        }
    )


def test_first_crossing_counts(make_run):
    assert reach(make_run(moments([3.0, 1.0, 3.0, 0.5])), 2.0).training_seconds == pytest.approx(15)


def test_nothing_is_extrapolated(make_run):
    run = make_run(moments([2.0, 1.0]))
    assert reach(run, 2.0).training_seconds == reach(run, 9.0).training_seconds == 10
    assert reach(run, 0.999) is None
    assert reach(make_run([]), 9.0) is None
    assert [is_bound(run, target) for target in (2.0, 1.5)] == [True, False] and not is_bound(make_run([]), 9.0)


@given(bits=qualities, target=st.floats(0.5, 8))
def test_as_numpy_interpolates(make_run, bits, target):
    reached = reach(make_run(moments(bits)), target)
    arrived = np.flatnonzero(np.array(bits) <= target)
    if arrived.size == 0:
        assert reached is None
        return
    last = int(arrived[0])
    ends = [last, max(last - 1, 0)]  # numpy wants them ascending
    expected = np.interp(target, [bits[i] for i in ends], [10 * (i + 1) for i in ends]) if last else 10
    assert reached.training_seconds == pytest.approx(expected)


@given(bits=qualities, targets=st.tuples(st.floats(0.5, 8), st.floats(0.5, 8)))
def test_a_better_target_costs_no_less(make_run, bits, targets):
    run = make_run(moments(bits))
    easy, hard = reach(run, max(targets)), reach(run, min(targets))
    if hard is not None:
        assert all(getattr(easy, axis) <= getattr(hard, axis) * (1 + 1e-12) for axis in AXES)


@given(bits=st.lists(qualities, min_size=1, max_size=4))
def test_all_reach_the_default_target_and_no_better_one(make_run, bits):
    runs = [make_run(moments(each)) for each in bits]
    target = default_target([*runs, make_run([])])
    assert all(reach(run, target) for run in runs)
    assert not all(reach(run, target - 1e-9) for run in runs)


def test_no_target_without_an_evaluation(make_run):
    with pytest.raises(UserError, match="no run has been evaluated"):
        default_target([make_run([])])


def test_only_runs_judged_alike_are_comparable(make_run):
    some = moments([2.0])
    alike = [make_run(some, name=name) for name in ("a", "b")]
    assert comparable([]) is None
    assert comparable([*alike, make_run([], name="unjudged", held_out="other")]) is None
    said = comparable([make_run(some, name="odd", held_out="other"), *alike])
    assert said is not None and said.endswith("than a, so not to be compared with it: odd")
