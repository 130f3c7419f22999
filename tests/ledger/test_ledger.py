"""The ledger of runs: what their choices are compared with, and Shapley's shares of a full grid."""

from collections.abc import Callable
from itertools import product

import pytest

from yxanul.errors import UserError
from yxanul.ledger.ledger import Against, Ledger, make_ledger
from yxanul.ledger.runs import Moment, Run

SECONDS = {(0, 0): 12.0, (0, 1): 6.0, (1, 0): 4.0, (1, 1): 1.0}
"""To the target by the two choices; a choice alone is worth 2 and 3, and with the other 4 and 6."""


def arriving(seconds: float, bits_per_byte: float = 1.0) -> list[Moment]:
    return [Moment(1, 1, int(1000 * seconds), 1.0, seconds, seconds, seconds, seconds, bits_per_byte)]


@pytest.fixture
def grid(make_run) -> list[Run]:
    """The runs of `--multirun tokenizer=bpe,superbpe optimizer=adamw,muon seed=1,2`; seed 2 is slower by a tenth."""
    tokenizers, optimizers = [{"kind": "bpe"}, {"kind": "superbpe", "split": 2}], [{"muon": None}, {"muon": {"lr": 1}}]
    return [
        make_run(
            arriving(SECONDS[t, o] * (1 + 0.1 * (seed - 1))),
            seed,
            f"tokenizer={tokenizers[t]['kind']} optimizer={('adamw', 'muon')[o]} seed={seed}",
            tokenizer=tokenizers[t],
            optimizer=optimizers[o],
        )
        for t, o, seed in product((0, 1), (0, 1), (1, 2))
    ]


def ledger(runs: list[Run], against: Against = Against.first, shapley: bool = False, target: float = 1.0) -> Ledger:
    return make_ledger(runs, target, "training_seconds", against, shapley)


@pytest.mark.parametrize(
    ("against", "expected"),
    [
        (Against.first, [2, 3, 12]),
        (Against.previous, [2, 1.5, 4]),
        (Against.without, [1 / 2, 1 / 3, 1 / 12]),
    ],
)
def test_choices_are_compared_as_asked(grid, against, expected):
    found = ledger(grid, against)
    assert found.factors[0] is None and found.shares is None
    assert [each.total.ratio for each in found.factors[1:]] == pytest.approx(expected)
    assert [each.name for each in found.factors[1:]] == [group.name for group in found.groups[1:]]


def test_a_recipe_that_never_arrives_has_no_factor_and_keeps_its_place(grid):
    late = [run for run in grid if "superbpe optimizer=adamw" in run.name]
    for run in late:
        run.moments[:] = arriving(1.0, bits_per_byte=1.5)
    found = ledger(grid, Against.without)
    assert [each and each.name for each in found.factors] == [
        None,
        "tokenizer=bpe optimizer=muon",
        None,
        "tokenizer=superbpe optimizer=muon",
    ]


def test_shares_of_a_grid(grid):
    """The averages of what each choice is worth first and last; both orders come to the whole."""
    found = ledger(grid, shapley=True).shares
    assert {each.name: each.total.ratio for each in found.factors} == pytest.approx(
        {"optimizer=muon": (2 * 4) ** 0.5, "tokenizer=superbpe": (3 * 6) ** 0.5}
    )
    assert found.whole.total.ratio == pytest.approx(12)
    assert {each.pairs for each in (*found.factors, found.whole)} == {2}
    assert found.factors[0].total.low == pytest.approx(8**0.5), "the seeds agree"


def test_shares_are_counted_on_the_axis(grid):
    for run in grid:
        run.moments[:] = [Moment(**vars(each) | {"flops": each.flops + len(run.name)}) for each in run.moments]
    found = make_ledger(grid, 1.0, "flops", Against.first, True).shares
    names = [len(grid[place].name) + 1 for place in (0, 6)]
    assert found.whole.total.ratio == pytest.approx(names[0] / names[1])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda runs: runs[:-2],
            "the grid of combinations has no cost of optimizer=muon + tokenizer=superbpe: "
            "run it, or leave out a choice",
        ),
        (lambda runs: runs[:2], "there is one recipe: Shapley's shares are of a full grid of choices, each with two"),
    ],
)
def test_what_is_no_full_grid_is_refused(grid, change, expected):
    with pytest.raises(UserError) as caught:
        ledger(change(grid), shapley=True)
    assert expected in str(caught.value)


def test_a_third_value_is_refused(grid, make_run):
    third = make_run(arriving(1.0), 1, "tokenizer=gpt2", tokenizer={"kind": "gpt2"}, optimizer={"muon": None})
    with pytest.raises(UserError, match=r"^tokenizer.kind has 3 values \(bpe, superbpe, gpt2\): "):
        ledger([*grid, third], shapley=True)


def test_recipes_that_never_arrive_are_named(grid: list[Run], make_run: Callable[..., Run]):
    """Those with the seed that lacks the fewest; one seed that all arrive with is enough."""
    grid[0].moments[:] = grid[2].moments[:] = grid[5].moments[:] = arriving(1.0, bits_per_byte=1.5)
    with pytest.raises(UserError) as caught:
        ledger(grid, shapley=True)
    assert str(caught.value) == (
        "with no seed all recipes reach 1.0000 bits per byte; with seed 2 these do not: "
        "tokenizer=superbpe optimizer=adamw; train them longer, or choose a higher target"
    )
    found = ledger(grid, shapley=True, target=1.5).shares
    assert found.whole.pairs == 2
    grid[5].moments[:] = arriving(1.0)
    assert ledger(grid, shapley=True).shares.whole.pairs == 1
