"""What the ledger calls choices that neither their sweep nor their user has named."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from yxanul.ledger.ledger import Against, Ledger, make_ledger
from yxanul.ledger.runs import Moment, Run

MADE = "nano-fp32-superbpe8k-none-parquet"
"""What `composition.run_name` makes of choices."""


@pytest.fixture
def made(make_run) -> Callable[..., Run]:
    """Makes a run: `made(number, choices, seed=1, name=None, **keys)`, in a folder whose name nobody chose."""

    def make(number: int, choices: Mapping[str, Any], seed: int = 1, name: str | None = None, **keys: Any) -> Run:
        folder = f"{MADE}-seed{seed}-{number:07x}{seed}"
        moments = [Moment(1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
        return make_run(moments, seed, name or folder, folder=folder, choices=choices, **keys)

    return make


def ledger(runs: list[Run], shapley: bool = False) -> Ledger:
    return make_ledger(runs, 1.0, "training_seconds", Against.previous, shapley)


def names(runs: list[Run]) -> list[str]:
    return [group.name for group in ledger(runs).groups]


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        (
            [
                ({"experiment": "ladder/4_muon", "schedule": "cosine"}, {"schedule": 1}),
                ({"experiment": "ladder/5_schedule", "schedule": "linear"}, {"schedule": 2}),
                ({"experiment": None, "schedule": "linear"}, {"schedule": 3}),
            ],
            ["experiment=ladder/4_muon", "experiment=ladder/5_schedule", "experiment=null"],
        ),
        (
            [
                ({"experiment": "fastest", "curriculum": "none"}, {"curriculum": 1}),
                ({"experiment": "fastest", "curriculum": "ultra"}, {"curriculum": 2}),
            ],
            ["curriculum=none", "curriculum=ultra"],
        ),
        (
            [
                ({"experiment": "a", "curriculum": "none"}, {"curriculum": 1}),
                ({"experiment": "a", "curriculum": "ultra"}, {"curriculum": 2}),
                ({"experiment": "b", "curriculum": "ultra"}, {"curriculum": 3}),
            ],
            ["experiment=a curriculum=none", "experiment=a curriculum=ultra", "experiment=b"],
        ),
        (
            [
                ({"experiment": "a"}, {"optimizer": {"lr": 0.01}}),
                ({"experiment": "a"}, {"optimizer": {"lr": 0.02}}),
            ],
            ["optimizer.lr=0.01", "optimizer.lr=0.02"],
        ),
        (
            [({"experiment": "a"}, {"model": dict.fromkeys("abcde", value)}) for value in (1, 2)],
            [f"model.a={value} model.b={value} model.c={value} and 2 more" for value in (1, 2)],
        ),
    ],
    ids=["experiments", "choices", "experiments and choices", "keys", "many keys"],
)
def test_a_choice_is_called_by_what_tells_it_apart(made, recipes, expected):
    runs = [made(number, choices, seed, **keys) for number, (choices, keys) in enumerate(recipes) for seed in (1, 2)]
    assert names(runs) == expected


def test_runs_are_called_as_in_a_sweep(made):
    runs = [made(ord(name), {"experiment": name}, seed, attention=name) for name in "ab" for seed in (1, 2)]
    assert [run.name for group in ledger(runs).groups for run in group.runs] == [
        f"experiment={name} seed={seed}" for name in "ab" for seed in (1, 2)
    ]


def test_a_sweep_that_was_made_in_parts_has_no_name_but_the_seed(made):
    """Its last part varied nothing else."""
    runs = [
        made(0, {"experiment": "a"}, 1, "experiment=a seed=1", attention="a"),
        made(1, {"experiment": "b"}, 1, "sweep/seed=1", attention="b"),
        made(2, {"experiment": "c"}, 2, "seed=2", attention="c"),
    ]
    assert names(runs) == ["experiment=a", "experiment=b", "experiment=c"]


def test_names_that_were_given_are_kept(made, make_run):
    """By a sweep, or by hydra.run.dir=, where the record of choices may be another command's."""
    one, two = made(0, {"experiment": "a"}, attention="a"), made(1, {"experiment": "b"}, attention="b")
    swept = made(2, {"experiment": "a"}, 1, "loss=plain seed=1", attention="c")
    mine = make_run(one.moments, 1, "without_muon", choices={"experiment": "z"}, attention="d")
    assert names([swept, mine, one, two]) == ["loss=plain", "without_muon", "experiment=a attention=a", "experiment=b"]


def test_runs_without_a_record_keep_the_names_of_their_folders(made):
    assert names([made(0, {}, attention="a"), made(1, {}, attention="b")]) == [MADE, MADE]
    assert names([made(0, {}, attention="a"), made(1, {"experiment": "b"}, attention="b")]) == [MADE, MADE]


def test_one_recipe_keeps_the_name_of_its_folder(made):
    assert names([made(0, {"experiment": "a"}, seed) for seed in (1, 2)]) == [MADE]


def test_shares_are_called_by_choices(made):
    runs = [
        made(2 * t + o, {"tokenizer": tokenizer, "optimizer": optimizer}, tokenizer={"a": t, "b": t}, optimizer=o)
        for t, tokenizer in enumerate(("bpe8k", "superbpe8k"))
        for o, optimizer in enumerate(("adamw", "muon"))
    ]
    found = ledger(runs, shapley=True).shares
    assert {each.name for each in found.factors} == {"tokenizer=superbpe8k", "optimizer=muon"}
