"""How long it took to make what a cache holds: whoever finds a tokenizer or tokens there still knows their cost."""

import json
from pathlib import Path

from yxanul.files import locked, write_json


def add_seconds(cache: Path, name: str, seconds: float) -> None:
    """Count the time of a preparation of `name`, beside what was spent on it before."""
    path = _path(cache, name)
    with locked(path.with_suffix(".lock")):
        write_json(path, {"seconds": seconds_for(cache, name) + seconds})


def seconds_for(cache: Path, name: str) -> float:
    """How long all preparations of `name` took; 0 if it was not made here."""
    try:
        return json.loads(_path(cache, name).read_text())["seconds"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # damage costs no more than the figure
        return 0.0


def all_seconds(cache: Path) -> dict[str, float]:
    """How long everything in the cache took, by name."""
    return {path.stem: seconds_for(cache, path.stem) for path in _path(cache, "*").parent.glob("*.json")}


def _path(cache: Path, name: str) -> Path:
    return cache / "times" / f"{name}.json"
