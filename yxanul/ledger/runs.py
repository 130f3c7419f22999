"""The runs that a ledger is made of, read from their folders: finished, on their way or dead."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import yaml

from yxanul.composition import NOT_IDENTITY, identity
from yxanul.errors import UserError
from yxanul.files import read_record
from yxanul.sweep.runs import SWEEP, recorded_runs
from yxanul.tracking import Row, read_rows

NOT_RECIPE = (*NOT_IDENTITY, "sweep")
"""Groups whose choices change nothing in what a run computes."""


@dataclass(frozen=True)
class Times:
    """Where the seconds of a run went, over all its starts.

    Attributes:
        preparation: training the tokenizer and tokenizing, when that was done first: a cache makes it no cheaper.
        start_up: imports, plan, data, model, up to the first step.
        warm_up: compilation and the first calls of kernels.
        training: steps and checkpoints.
        evaluation: of the held-out text.
    """

    preparation: float
    start_up: float
    warm_up: float
    training: float
    evaluation: float

    @property
    def before(self) -> float:
        """Until the first step."""
        return self.preparation + self.start_up + self.warm_up

    @property
    def total(self) -> float:
        return self.before + self.training + self.evaluation


@dataclass(frozen=True)
class Moment:
    """A run after one of its steps: what it had cost, and how good it was.

    Attributes:
        tokens, bytes: trained on.
        flops: of training, by the model's arithmetic.
        training_seconds: of steps and checkpoints.
        prepared_seconds: with preparation, start-up and warm-up.
        total_seconds: with the evaluations before, too.
        device_hours: of training, times the number of devices.
        bits_per_byte: of the held-out text, or of the step's own batch.
    """

    step: int
    tokens: int
    bytes: int
    flops: float
    training_seconds: float
    prepared_seconds: float
    total_seconds: float
    device_hours: float
    bits_per_byte: float


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        name: what tells it from the others of the report.
        config: as composed, nested.
        plan: of plan.json.
        result: of result.json; None if the run is not finished.
        steps: its train rows.
        training: the same as moments, with the bits per byte of their batches; not a number where that was not finite.
        moments: its evaluations, in order.
        held_out: what it was judged on: a hash of the text, and its context; runs are compared if these are equal.
        choices: of each group of conf/ that has a part in what it computes; empty where Hydra kept no record.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    plan: dict[str, Any]
    result: dict[str, Any] | None
    steps: list[Row]
    training: list[Moment]
    moments: list[Moment]
    times: Times
    held_out: str
    choices: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> dict[str, Any]:
        """The part of the configuration that it computes from, but for the seed."""
        return identity(self.config) | {"seed": None}

    @property
    def best(self) -> float | None:
        """The fewest bits per byte that it reached; None before its first evaluation."""
        return min((moment.bits_per_byte for moment in self.moments), default=None)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in folders of runs, of sweeps, or of several of these; what has not begun to train is left out.

    Raises:
        UserError: a folder is not there, or holds no run.
    """
    folders: dict[Path, str] = {}
    for path in paths:
        found = dict(_folders(path))
        if not found:
            raise UserError(f"{path}: holds no run that has begun to train; name folders of runs or of sweeps")
        folders |= found
    names = list(folders.values())
    return [
        _read(folder, name if names.count(name) == 1 else f"{folder.parent.name}/{name}")
        for folder, name in folders.items()
    ]


def _folders(path: Path) -> Iterator[tuple[Path, str]]:
    """Folders of runs at or below `path`, with their names; those of a sweep in its order."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name folders of runs or of sweeps")
    if (path / "metrics.jsonl").exists():
        if (path / "plan.json").exists():
            yield path, path.resolve().name
        return
    varies = recorded_runs(path) if (path / SWEEP).exists() else {}
    names = list(varies) or sorted(each.name for each in path.iterdir() if each.is_dir() and not each.is_symlink())
    for folder in (path / name for name in names):
        for found, name in _folders(folder) if folder.is_dir() else ():
            yield found, varies.get(found.name) or name


def _read(folder: Path, name: str) -> Run:
    advice = "leave this run out, or start its command again"
    try:
        config = read_record(folder / "config.yaml", advice, ["data", "hardware", "seed"])
        plan = read_record(folder / "plan.json", advice, ["stages", "processes"])
        finished = (folder / "result.json").exists()
        result = read_record(folder / "result.json", advice, ["bits_per_byte"]) if finished else None
        rows = read_rows(folder / "metrics.jsonl")
    except OSError as error:
        raise UserError(f"{folder}: cannot be read as a run ({error})") from error
    steps = [row for row in rows if row["kind"] == "train"]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    starts = [row for row in rows if row["kind"] == "start"]
    times = _times(rows, starts)
    moment = _moment_of(plan, steps, evaluations, times)
    return Run(
        name=name,
        folder=folder,
        config=config,
        plan=plan,
        result=result,
        steps=steps,
        training=[moment(row) for row in steps],
        moments=[moment(row) for row in evaluations if row["bits_per_byte"] is not None],
        times=times,
        held_out=starts[-1]["held_out"] if starts else "",
        choices=_choices(folder),
    )


def _choices(folder: Path) -> dict[str, Any]:
    try:
        record = yaml.safe_load((folder / ".hydra" / "hydra.yaml").read_text())
        choices = record["hydra"]["runtime"]["choices"].items()
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return {}  # Hydra's file, which a kill can leave half written: a run is read without it
    return {group: choice for group, choice in choices if group.partition("/")[0] not in NOT_RECIPE}


def _times(rows: list[Row], starts: list[Row]) -> Times:
    evaluating = {row["step"]: row["evaluation_seconds"] for row in rows if row["kind"] == "eval"}
    last = max((row for row in rows if "seconds" in row), key=lambda row: row["seconds"], default=None)
    counted = sum(seconds for step, seconds in evaluating.items() if last and step < last["step"])
    return Times(
        preparation=starts[-1]["preparation_seconds"] if starts else 0.0,
        start_up=sum(row["start_up_seconds"] for row in starts),
        warm_up=sum(row.get("warm_up_seconds", 0.0) for row in rows if row["kind"] == "event"),
        training=last["seconds"] - counted if last else 0.0,
        evaluation=sum(evaluating.values()),
    )


def _moment_of(plan: dict[str, Any], steps: list[Row], evaluations: list[Row], times: Times) -> Callable[[Row], Moment]:
    """A function from a row of a step or an evaluation to what the run had cost then.

    The clock of a row counts the evaluations after earlier steps.
    """
    work = {stage["stage"]: stage["flops"] / stage["tokens"] for stage in plan["stages"]}
    tokens = [0, *(row["tokens"] for row in steps)]
    flops = {0: 0.0}
    for row, (before, after) in zip(steps, pairwise(tokens), strict=True):
        flops[row["step"]] = next(reversed(flops.values())) + (after - before) * work[row["stage"]]
    evaluated = [row["step"] for row in evaluations]
    evaluating = [0.0, *accumulate(row["evaluation_seconds"] for row in evaluations)]

    def moment(row: Row) -> Moment:
        training = row["seconds"] - evaluating[bisect_left(evaluated, row["step"])]
        score = row["bits_per_byte"]
        return Moment(
            step=row["step"],
            tokens=row["tokens"],
            bytes=row["bytes"],
            flops=flops[row["step"]],
            training_seconds=training,
            prepared_seconds=times.before + training,
            total_seconds=times.before + row["seconds"],
            device_hours=plan["processes"] * training / 3600,
            bits_per_byte=math.nan if score is None else score,
        )

    return moment
