"""The choices that a grid of recipes is made of, from what differs in their configurations."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from yxanul.errors import UserError
from yxanul.ledger.differences import differences

NEEDED = "Shapley's shares are of a full grid of choices, each with two values"

OVERRIDE = re.compile(r"\S+=.*?(?=\s+\S+=|$)")
"""In the names of recipes; a value may hold spaces."""

Present = frozenset[int]
"""A choice, as the places of the recipes that it is present in."""


def find_choices(names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[frozenset[str]]:
    """Of each recipe the choices that are present in it; the first has none.

    A choice is the keys that change together, between the first recipe's values and others. It is called by the
    overrides that stand in the names of its recipes alone, or else by its first key.

    Raises:
        UserError: the recipes do not differ, or a choice has more than two values.
    """
    differing = differences(configs)
    if not differing:
        raise UserError(f"there is one recipe: {NEEDED}")
    keys = _of_two_values(differing)
    choices = _independent(list(keys), len(configs))
    called = {present: _name(present, names, keys[present]) for present in choices}
    recipes = [frozenset(called[present] for present in each) for each in _recipes(choices, len(configs))]
    full = len(set(recipes)) == len(recipes) == 2 ** len(choices)
    many = next((key for key, values in differing.items() if len(set(values)) > 2), None)
    if many and not full:
        values = list(dict.fromkeys(map(_text, differing[many])))
        raise UserError(f"{many} has {len(values)} values ({', '.join(values)}): {NEEDED}")
    return recipes


def _of_two_values(differing: Mapping[str, Sequence[str | None]]) -> dict[Present, list[str]]:
    """Where they have not the first of their two values, the keys that have two, with the other value."""
    keys: dict[Present, list[str]] = {}
    for key, values in differing.items():
        if len(set(values)) == 2:
            present = frozenset(place for place, value in enumerate(values) if value != values[0])
            keys.setdefault(present, []).append(f"{key}={_text(values[min(present)])}")
    return keys


def _independent(choices: list[Present], count: int) -> list[Present]:
    """Without those that follow from others, as a key does that has another value only if two choices are present."""
    kept = choices
    # A choice is present in half of a full grid, and what follows from several in more or in fewer recipes.
    for present in sorted(choices, key=lambda each: abs(2 * len(each) - count), reverse=True):
        rest = [each for each in kept if each != present]
        if len(set(_recipes(rest, count))) == len(set(_recipes(kept, count))):
            kept = rest
    return kept


def _recipes(choices: Sequence[Present], count: int) -> list[frozenset[Present]]:
    return [frozenset(present for present in choices if place in present) for place in range(count)]


def _name(present: Present, names: Sequence[str], keys: Sequence[str]) -> str:
    overrides = [OVERRIDE.findall(name) for name in names]
    places = {each: {place for place, had in enumerate(overrides) if each in had} for each in overrides[min(present)]}
    own = [override for override, had in places.items() if had == present]
    if own:
        return " ".join(own)
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def _text(value: str | None) -> str:
    return "absent" if value is None else value
