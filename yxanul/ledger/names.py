"""What runs are called: by their sweep or their user, or else by what tells their recipes apart."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from yxanul.ledger.differences import differences
from yxanul.ledger.runs import Run

MADE = r"-seed\d+-[0-9a-f]{8}$"
"""How a folder's name ends that `composition.run_name` made."""

SEED = re.compile(rf"\s*\bseed=\d+\b|{MADE}")
"""In the names of runs, what tells seeds apart."""

MAX_KEYS = 3
"""How many of each kind stand in a name."""


def recipe_name(run: Run) -> str:
    """What runs like this one under any seed are called."""
    return SEED.sub("", run.name) or run.name


def named(runs: Sequence[Run]) -> list[Run]:
    """The runs, in their order; who has but a made name, or a seed for one, is called by what tells the recipes apart.

    That is the experiment, where it is the same the other choices, and where these are the same the keys. Runs without
    a record of their choices keep their names, and so do those that would be called like another.
    """
    # Where the user has named the folder, Hydra's record may be that of a command that was refused.
    known = [run for run in runs if run.choices and re.search(MADE, run.folder.name)]
    apart = [""] * len(known)
    for facts in (
        [{"experiment": run.choices.get("experiment")} for run in known],
        [run.choices for run in known],
        [run.recipe for run in known],
    ):
        apart = _told_apart(apart, facts)
    found = {
        run.folder: f"{name} seed={run.config['seed']}"
        for run, name in zip(known, apart, strict=True)
        if name and _nameless(run)
    }
    names = [found.get(run.folder, run.name) for run in runs]
    count = Counter(names)
    return [replace(run, name=name) if count[name] == 1 else run for run, name in zip(runs, names, strict=True)]


def _nameless(run: Run) -> bool:
    return bool(re.search(MADE, run.name)) or SEED.sub("", run.name.rpartition("/")[2]) == ""


def _told_apart(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names, and behind those that are the same the facts that differ."""
    apart = list(names)
    for name in set(names):
        places = [place for place, each in enumerate(names) if each == name]
        differing = differences([facts[place] for place in places])
        more = [f"and {len(differing) - MAX_KEYS} more"] if len(differing) > MAX_KEYS else []
        for index, place in enumerate(places):
            pairs = [f"{key}={values[index]}" for key, values in differing.items()]
            apart[place] = " ".join([*([name] if name else []), *pairs[:MAX_KEYS], *more])
    return apart
