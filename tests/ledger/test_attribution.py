"""The factors of a speed-up: against independent references, and as their axioms demand."""

import math
from itertools import permutations
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yxanul.errors import UserError
from yxanul.ledger.attribution import (
    SPENT,
    Estimate,
    against_first,
    factor,
    ladder,
    leave_one_out,
    shapley,
    shares,
    student_t,
)
from yxanul.ledger.quality import AXES, Reached

costs = st.floats(1e-3, 1e6)
reached = st.builds(Reached, *[costs] * len(AXES))
axes = st.sampled_from(SPENT)


def seeds(count: int):
    """Costs with the seeds below `count`, all of which arrived."""
    return st.fixed_dictionaries(dict.fromkeys(range(count), reached))


def spent(seconds: float, read: float = 1.0) -> Reached:
    return Reached(seconds, seconds, seconds, read, read, seconds, seconds)


def grid(choices: str):
    """Costs of all combinations of one-letter choices."""
    subsets = [frozenset(c for i, c in enumerate(choices) if bits >> i & 1) for bits in range(2 ** len(choices))]
    return st.fixed_dictionaries(dict.fromkeys(subsets, costs))


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29, 30, 100, 1001])
def test_students_t_encloses_95_percent_of_the_integrated_density(freedom):
    t = student_t(freedom) * (np.arange(200_000) + 0.5) / 200_000
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = np.exp(scale - (freedom + 1) / 2 * np.log1p(t**2 / freedom))
    assert 2 * student_t(freedom) * density.mean() == pytest.approx(0.95, abs=1e-8)


def test_students_t_falls_to_the_normal_limit():
    values = [student_t(freedom) for freedom in (*range(1, 40), 10_000)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(math.tan(0.95 * math.pi / 2))
    assert values[-1] == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-3)


@given(data=st.data(), count=st.integers(1, 5), axis=axes)
def test_learning_times_throughput_is_the_whole(data, count, axis):
    before, after = data.draw(seeds(count)), data.draw(seeds(count))
    found = factor("it", before, after, axis)
    assert found.pairs == count
    assert found.learning.ratio * found.throughput.ratio == pytest.approx(found.total.ratio)
    ratios = [getattr(before[seed], axis) / getattr(after[seed], axis) for seed in before]
    assert found.total.ratio == pytest.approx(math.prod(ratios) ** (1 / count))
    rates = [
        (after[seed].bytes / getattr(after[seed], axis)) / (before[seed].bytes / getattr(before[seed], axis))
        for seed in before
    ]
    assert found.throughput.ratio == pytest.approx(math.prod(rates) ** (1 / count))


@given(data=st.data(), count=st.integers(1, 4), axis=axes)
def test_the_other_way_round_is_the_inverse(data, count, axis):
    before, after = data.draw(seeds(count)), data.draw(seeds(count))
    there, back = factor("it", before, after, axis).total, factor("it", after, before, axis).total
    assert there.ratio * back.ratio == pytest.approx(1)
    if count > 1:
        assert there.low * back.high == pytest.approx(1)


def test_interval_of_three_pairs():
    after = {seed: spent(1.0) for seed in (1, 2, 3)}
    found = factor("it", {seed: spent(math.exp(seed)) for seed in after}, after).total
    t = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # of two degrees of freedom, where P(|T| < t) is t / sqrt(2 + t^2)
    margin = t / math.sqrt(3)  # the logarithms deviate by 1
    assert (found.ratio, found.low, found.high) == pytest.approx([math.exp(2 + way * margin) for way in (0, -1, 1)])


def test_intervals_hold_the_truth_19_times_of_20():
    generator = np.random.default_rng(1)
    after = {seed: spent(1.0) for seed in range(3)}
    held = 0
    for logs in generator.normal(0.5, 0.3, (1000, 3)):
        found = factor("it", {seed: spent(math.exp(log)) for seed, log in enumerate(logs)}, after).total
        held += found.low <= math.exp(0.5) <= found.high
    assert held == pytest.approx(950, abs=4 * math.sqrt(1000 * 0.95 * 0.05))


@pytest.mark.parametrize(
    ("estimate", "significant"),
    [
        (Estimate(2.0, 1.1, 3.0), True),
        (Estimate(0.5, 0.4, 0.9), True),
        (Estimate(1.2, 0.9, 1.5), False),
        (Estimate(1.2, 1.0, 1.5), False),
        (Estimate(1 + 7e-15, 1 + 6e-15, 1 + 8e-15), False),
        (Estimate(2.0, None, None), False),
    ],
)
def test_significance(estimate, significant):
    assert estimate.significant is significant


def test_only_seeds_with_which_both_arrive_are_paired():
    before = {1: spent(4), 2: None, 3: spent(100), 4: spent(100)}
    found = factor("it", before, {1: spent(2), 2: spent(1), 3: None, 5: spent(1)})
    assert found.pairs == 1
    assert found.total == Estimate(pytest.approx(2.0), None, None)
    assert factor("it", before, {2: spent(1)}) is None


def test_a_run_that_was_there_before_it_trained_has_no_ratio():
    with pytest.raises(UserError, match="choose a lower target"):
        factor("it", {1: spent(0)}, {1: spent(1)})


def test_a_speed_up_is_not_counted_in_text():
    with pytest.raises(UserError, match=r"axis=bytes: .* training_seconds"):
        factor("it", {1: spent(1)}, {1: spent(1)}, "bytes")


@given(data=st.data(), count=st.integers(1, 3), length=st.integers(1, 5), axis=axes)
def test_a_ladder_multiplies_to_the_whole(data, count, length, axis):
    rungs = [(str(number), data.draw(seeds(count))) for number in range(length)]
    steps, whole = ladder(rungs, axis), factor("whole", rungs[0][1], rungs[-1][1], axis)
    assert [step.name for step in steps] == [name for name, _ in rungs[1:]]
    for part in ("total", "learning", "throughput"):
        product = math.prod(getattr(step, part).ratio for step in steps)
        assert product == pytest.approx(getattr(whole, part).ratio)


def test_a_rung_that_never_arrives_has_no_worth_nor_has_the_next():
    rungs = [("base", {1: spent(8)}), ("lost", {1: None}), ("back", {1: spent(2)}), ("end", {1: spent(1)})]
    assert [step and (step.name, step.total.ratio) for step in ladder(rungs)] == [None, None, ("end", pytest.approx(2))]
    found = against_first(rungs)
    assert [step and (step.name, step.total.ratio) for step in found] == [
        None,
        ("back", pytest.approx(4)),
        ("end", pytest.approx(8)),
    ]


def test_leave_one_out_is_what_is_lost_without():
    full, lost = {1: spent(2, read=3)}, {1: None}
    found = leave_one_out([("full", full), ("a", {1: spent(6, read=3)}), ("b", {1: spent(2, 6)}), ("c", lost)])
    assert [each and (each.name, each.total.ratio, each.learning.ratio) for each in found] == [
        ("a", pytest.approx(3), pytest.approx(1)),
        ("b", pytest.approx(1), pytest.approx(2)),
        None,
    ]


@given(data=st.data(), count=st.integers(1, 3), axis=axes)
def test_two_recipes_are_compared_alike_from_either_end(data, count, axis):
    """The other recipe is the whole one, or the one that lacks a choice."""
    one, other = ("one", data.draw(seeds(count))), ("other", data.draw(seeds(count)))
    (forth,), (back,) = against_first([one, other], axis), leave_one_out([other, one], axis)
    assert forth.total == back.total and forth.learning == back.learning
    assert (forth.name, back.name) == ("other", "one")


@settings(max_examples=50)
@given(costs=grid("abcd"))
def test_shapley_averages_over_all_orders(costs):
    logs = dict.fromkeys("abcd", 0.0)
    for order in permutations("abcd"):
        for i, choice in enumerate(order):
            logs[choice] += math.log(costs[frozenset(order[:i])] / costs[frozenset(order[: i + 1])]) / 24
    found = shapley(costs)
    assert found == pytest.approx({choice: math.exp(log) for choice, log in logs.items()})
    assert math.prod(found.values()) == pytest.approx(costs[frozenset()] / costs[frozenset("abcd")])


@given(costs=grid("abc"), ratio=st.floats(0.1, 10))
def test_a_choice_that_always_does_the_same_is_worth_that(costs, ratio):
    """With ratio 1 it is the null player, whose presence changes nothing for the others either."""
    wider = costs | {chosen | {"d"}: cost / ratio for chosen, cost in costs.items()}
    assert shapley(wider) == pytest.approx(shapley(costs) | {"d": ratio})


@given(costs=grid("abc"))
def test_choices_that_do_the_same_are_worth_the_same(costs):
    costs |= {chosen ^ {"a", "b"}: cost for chosen, cost in costs.items() if "a" in chosen and "b" not in chosen}
    found = shapley(costs)
    assert found["a"] == pytest.approx(found["b"])


def test_shapley_of_nothing_is_nothing():
    assert shapley({frozenset(): 5.0}) == {}


@pytest.mark.parametrize(
    ("missing", "named"),
    [("", "the recipe without a, b"), ("b", "no cost of b:"), ("ab", r"no cost of a \+ b:")],
)
def test_shapley_names_what_is_missing(missing, named):
    full = {frozenset(chosen): 1.0 for chosen in ("", "a", "b", "ab")}
    costs = {chosen: cost for chosen, cost in full.items() if chosen != frozenset(missing)}
    with pytest.raises(UserError, match=named):
        shapley(costs)


def grid_of_seeds(choices: str, count: int):
    """Costs of all combinations of one-letter choices with the seeds below `count`."""
    return grid(choices).flatmap(lambda costs: st.fixed_dictionaries(dict.fromkeys(costs, seeds(count))))


@settings(max_examples=30)
@given(costs=grid_of_seeds("abc", 3), axis=axes)
def test_shares_average_over_all_orders_and_over_seeds(costs, axis):
    logs = {(choice, kind): np.zeros(3) for choice in "abc" for kind in (axis, "bytes")}
    for order in permutations("abc"):
        for i, choice in enumerate(order):
            before, after = costs[frozenset(order[:i])], costs[frozenset(order[: i + 1])]
            for kind in (axis, "bytes"):
                logs[choice, kind] += [np.log(getattr(before[s], kind) / getattr(after[s], kind)) / 6 for s in range(3)]
    found = shares(costs, axis)
    t = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # of two degrees of freedom
    for each in found.factors:
        whole, learning = logs[each.name, axis], logs[each.name, "bytes"]
        for estimate, expected in ((each.total, whole), (each.learning, learning), (each.throughput, whole - learning)):
            margin = t * expected.std(ddof=1) / math.sqrt(3)
            ends = [expected.mean(), expected.mean() - margin, expected.mean() + margin]
            assert np.log([estimate.ratio, estimate.low, estimate.high]) == pytest.approx(ends, abs=1e-9)
    assert [each.name for each in found.factors] == ["a", "b", "c"]


@settings(max_examples=30)
@given(costs=grid_of_seeds("abc", 2), axis=axes)
def test_the_product_of_shares_is_the_whole(costs, axis):
    found = shares(costs, axis)
    direct = factor("it", costs[frozenset()], costs[frozenset("abc")], axis)
    for part in ("total", "learning", "throughput"):
        product = math.prod(getattr(each, part).ratio for each in found.factors)
        assert product == pytest.approx(getattr(found.whole, part).ratio)
        assert getattr(found.whole, part) == getattr(direct, part)


def test_shares_are_of_the_seeds_with_which_all_arrive():
    """With seed 1 one does not, and with seed 3 one has not run: what the others cost then counts for nothing."""
    costs = {
        frozenset(): {1: spent(1000), 2: spent(8), 3: spent(1000)},
        frozenset("a"): {1: None, 2: spent(4), 3: spent(4)},
        frozenset("b"): {1: spent(2), 2: spent(2)},
        frozenset("ab"): {1: spent(1), 2: spent(1), 3: spent(1)},
    }
    found = shares(costs)
    assert [each.total.ratio for each in (*found.factors, found.whole)] == pytest.approx([2, 4, 8])
    assert {each.pairs for each in (*found.factors, found.whole)} == {1}
    assert shares(costs | {frozenset("b"): {1: spent(1)}}) is None


def test_shares_are_not_counted_in_text_and_of_a_full_grid_alone():
    costs = {frozenset(): {1: spent(2)}, frozenset("a"): {1: spent(1)}, frozenset("ab"): {1: spent(1)}}
    with pytest.raises(UserError, match="axis=bytes"):
        shares(costs, "bytes")
    with pytest.raises(UserError, match="no cost of b:"):
        shares(costs)
