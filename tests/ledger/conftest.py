"""Runs without folders."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from yxanul.ledger.runs import Moment, Run, Times


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """Makes a run: `make_run(moments, seed=1, name="run", held_out="text", folder=name, choices={}, **config)`."""

    def make(
        moments: Sequence[Moment],
        seed: int = 1,
        name: str = "run",
        held_out: str = "text",
        folder: str | None = None,
        choices: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> Run:
        return Run(
            name=name,
            folder=Path(folder or name),
            config={"data": {}, "hardware": {}, "seed": seed, **config},
            plan={},
            result=None,
            steps=[],
            training=[],
            moments=list(moments),
            times=Times(preparation=0.0, start_up=0.0, warm_up=0.0, training=0.0, evaluation=0.0),
            held_out=held_out,
            choices=dict(choices or {}),
        )

    return make
