"""The choices of a grid, found in configurations alone, whatever else follows from them."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yxanul.errors import UserError
from yxanul.ledger.differences import differences
from yxanul.ledger.grid import find_choices


def found(configs: list) -> list[frozenset[str]]:
    """The choices where names do not tell the recipes apart."""
    return find_choices(["run"] * len(configs), configs)


def test_differences_are_dotted_and_in_order():
    one = {"b": {"y": 1, "x": None}, "a": ["s", True], "same": 0.5}
    other = {"b": {"y": 2}, "a": ["t", True, []], "same": 0.5, "new": {}}
    assert differences([one, other]) == {
        "b.y": ["1", "2"],
        "b.x": ["null", None],
        "a.0": ["s", "t"],
        "a.2": [None, "[]"],
        "new": [None, "{}"],
    }
    assert list(differences([one, other])) == ["b.y", "b.x", "a.0", "a.2", "new"]
    assert differences([one, one]) == {}


def test_keys_that_change_together_are_one_choice():
    bpe, superbpe = {"kind": "bpe"}, {"kind": "superbpe", "transition": 6144}
    adamw, muon = {"lr": 1, "muon": None}, {"lr": 1, "muon": {"lr": 2, "momentum": 0.5}}
    configs = [{"tokenizer": one, "optimizer": other} for one, other in product((bpe, superbpe), (adamw, muon))]
    first, second = "tokenizer.kind=superbpe and 1 more", "optimizer.muon=absent and 2 more"
    assert found(configs) == [set(), {second}, {first}, {first, second}]


@given(data=st.data(), count=st.integers(1, 4))
def test_choices_are_found_whatever_follows_from_them(data, count):
    """In any order after the first, beside keys that depend on two of them and come before or after."""
    rest = [bits for bits in product((0, 1), repeat=count) if any(bits)]
    rows = [(0,) * count, *data.draw(st.permutations(rest))]
    pair = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    rules = [
        lambda one, other: int(one and other),
        lambda one, other: int(one or other),
        lambda one, other: int(one and not other),
        lambda one, other: one + 2 * other,
    ]
    follow = data.draw(st.lists(st.tuples(pair, st.sampled_from(rules)), max_size=6))
    derived = [
        [(f"derived{i}", rule(row[a], row[b])) for i, ((a, b), rule) in enumerate(follow) if a != b] for row in rows
    ]
    own = [[(f"key{i}", bit) for i, bit in enumerate(row)] for row in rows]
    before = data.draw(st.booleans())
    configs = [dict(more + mine if before else mine + more) for more, mine in zip(derived, own, strict=True)]
    assert found(configs) == [{f"key{i}=1" for i, bit in enumerate(row) if bit} for row in rows]


def test_what_follows_from_two_choices_is_none_though_one_could_be_told_from_it():
    """The first choice is known from the two keys after it, one of which is set with the other choice, one without."""
    configs = [{"a": a, "with": a * b, "without": a * (1 - b), "b": b} for a, b in product((0, 1), repeat=2)]
    assert found(configs) == [set(), {"b=1"}, {"a=1"}, {"a=1", "b=1"}]


def test_a_choice_is_called_by_its_overrides():
    configs = [{"t": t, "o": o} for t, o in product((0, 1), repeat=2)]
    names = [
        "tokenizer=a optimizer=b",
        "tokenizer=a optimizer=muon",
        "tokenizer=c x=[1, 2] optimizer=b",
        "tokenizer=c x=[1, 2] optimizer=muon",
    ]
    both = {"tokenizer=c x=[1, 2]", "optimizer=muon"}
    assert find_choices(names, configs) == [set(), {"optimizer=muon"}, {"tokenizer=c x=[1, 2]"}, both]
    names[2] = "tokenizer=c x=[1, 2] optimizer=muon"
    assert find_choices(names, configs)[3] == {"tokenizer=c x=[1, 2]", "o=1"}, "some without it have the override"
    names[2] = names[3] = "tokenizer=c x=[1, 2]"
    assert find_choices(names, configs)[3] == {"tokenizer=c x=[1, 2]", "o=1"}, "not all with it have the override"
    assert find_choices(["folder", "other"], configs[:2])[1] == {"o=1"}, "a name without overrides says nothing"


def test_what_the_first_recipe_alone_has_is_absent_from_a_choice():
    assert found([{"a": 1, "extra": 2}, {"a": 1}]) == [set(), {"extra=absent"}]


def test_a_missing_recipe_leaves_the_choices_as_they_are():
    """`shapley` then says which it is."""
    configs = [{"a": a, "b": b} for a, b in ((0, 0), (1, 0), (0, 1))]
    assert found(configs) == [set(), {"a=1"}, {"b=1"}]


@pytest.mark.parametrize(
    "values", [[("a", 0), ("b", 0), ("c", 0)], [("a", 0), ("b", 0), ("c", 0), ("c", 1), ("b", 1), ("a", 1)]]
)
def test_a_choice_of_three_is_refused(values):
    """Alone, where nothing else tells the recipes apart, and in a grid with another, beside a key that has two."""
    configs = [{"tokenizer": {"name": name, "big": name == "c"}, "muon": muon} for name, muon in values]
    with pytest.raises(UserError, match=r"^tokenizer.name has 3 values \(a, b, c\): Shapley's shares .* two values$"):
        found(configs)


def test_a_choice_of_four_is_refused_though_there_are_as_many_recipes_as_in_a_grid_of_two():
    configs = [{"name": name, "p": name in "bcd", "q": name == "d"} for name in "abcd"]
    with pytest.raises(UserError, match=r"name has 4 values \(a, b, c, d\)"):
        found(configs)


def test_one_recipe_is_no_grid():
    with pytest.raises(UserError, match="there is one recipe"):
        found([{"a": 1}])
