"""Learning-rate schedules: their shapes at chosen points, and what holds for all of them."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from yxanul.config import ScheduleConfig, ScheduleKind
from yxanul.optim.schedule import learning_rate

TOKENS = 1_000_000


@st.composite
def schedules(draw):
    """Any schedule that validation lets through: warm-up and decay fit into the run."""
    warmup = draw(st.floats(0, 1))
    decay = draw(st.floats(0, 1 - warmup))
    assume(warmup == 0 or warmup > 1e-6)
    return ScheduleConfig(draw(st.sampled_from(ScheduleKind)), warmup, decay, draw(st.floats(0, 1)))


def rate(schedule, progress):
    return learning_rate(schedule, progress * TOKENS, TOKENS)


shares = st.floats(0, 1)


@given(schedules(), shares)
def test_warm_up_is_a_line_from_zero_to_one(schedule, part):
    assume(schedule.warmup > 0 and part < 1)
    assert rate(schedule, part * schedule.warmup) == pytest.approx(part, abs=1e-9)


@given(schedules(), shares, shares)
def test_after_the_warm_up_it_never_rises_and_stays_over_the_floor(schedule, one, other):
    early, late = (schedule.warmup + part * (1 - schedule.warmup) for part in sorted((one, other)))
    assume(early * TOKENS / TOKENS >= schedule.warmup)
    assert 1 + 1e-9 >= rate(schedule, early) >= rate(schedule, late) - 1e-9
    assert rate(schedule, late) >= schedule.floor - 1e-9


@given(schedules())
def test_the_run_ends_at_the_floor(schedule):
    """But for a stable schedule without decay and a warm-up of the whole run, which have nowhere to fall."""
    falls = schedule.decay > 0 if schedule.kind is ScheduleKind.wsd else schedule.warmup < 1
    assert rate(schedule, 1.0) == pytest.approx(schedule.floor if falls else 1.0, abs=1e-9)


@given(schedules(), shares, st.floats(0, 0.01))
def test_it_has_no_jump(schedule, progress, width):
    """A step of `width` changes it by no more than the steepest part of its shape could."""
    assume(schedule.decay > 1e-6 or schedule.kind is not ScheduleKind.wsd)
    fall = schedule.decay if schedule.kind is ScheduleKind.wsd else 1 - schedule.warmup
    assume(fall > 1e-6)
    slope = max(1 / schedule.warmup if schedule.warmup else 0.0, math.pi / 2 / fall)
    difference = rate(schedule, min(1.0, progress + width)) - rate(schedule, progress)
    if schedule.warmup + width > 0:
        assert abs(difference) <= slope * width + 1e-9


@given(schedules(), st.integers(0, 1000), st.integers(1, 10**6))
def test_only_the_share_of_the_run_counts(schedule, position, factor):
    assume(abs(position / 1000 - schedule.warmup) > 1e-9)
    assert learning_rate(schedule, position * factor, 1000 * factor) == pytest.approx(
        learning_rate(schedule, position, 1000), abs=1e-9
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ScheduleKind.linear, [1, 0.775, 0.7, 0.55, 0.325, 0.1]),
        (ScheduleKind.cosine, [1, 0.8682, 0.775, 0.55, 0.2318, 0.1]),
        (ScheduleKind.wsd, [1, 1, 1, 1, 0.6625, 0.1]),
    ],
)
def test_shapes_after_a_warm_up_of_a_tenth(kind, expected):
    """At 0, 1/4, 1/3, 1/2, 3/4 and all of what follows the warm-up; wsd decays over the last 0.36."""
    schedule = ScheduleConfig(kind, warmup=0.1, decay=0.36, floor=0.1)
    found = [rate(schedule, 0.1 + 0.9 * part) for part in (0, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1)]
    assert found == pytest.approx(expected, abs=1e-4)
