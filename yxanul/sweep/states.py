"""Where the runs of a sweep stand, read from the sweep's folder and from the scheduler, by any process."""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from yxanul.errors import LostProcess
from yxanul.sweep import scheduler
from yxanul.sweep.job import STOPPED
from yxanul.sweep.runs import OUTCOME, JobRecord, launcher_of, lives, read_json, recorded_job, recorded_runs


class State(Enum):
    """What a run is doing, in the words of the table."""

    finished = "finished"
    running = "running"
    pending = "pending"
    failed = "failed"
    stopped = "stopped"
    missing = "not started"


ON_ITS_WAY = (State.running, State.pending)


@dataclass(frozen=True)
class RunState:
    """One run of a sweep.

    Attributes:
        folder: the run's.
        varies: the overrides in which it differs from the sweep's other runs.
        state: what it is doing.
        step, steps: of the optimizer, done and planned; None where that is not known yet.
        bits_per_byte: of the held-out text; of a run that is not finished, the last that was measured.
        job: its job, where it has one.
        log: where it, or the first of its processes that failed, says what went wrong.
    """

    folder: Path
    varies: str
    state: State
    step: int | None = None
    steps: int | None = None
    bits_per_byte: float | None = None
    job: JobRecord | None = None
    log: Path | None = None


def sweep_states(sweep: Path) -> list[RunState]:
    """The state of every run of a sweep, in the order in which they were asked for.

    Raises:
        UserError: the folder holds no sweep.
    """
    runs = recorded_runs(sweep)
    jobs = {name: job for name in runs if (job := recorded_job(sweep / name))}
    seen = scheduler.look([(sweep / name, job) for name, job in jobs.items()])
    states = [
        run_state(sweep / name, varies, jobs.get(name), seen[jobs[name].id] if name in jobs else "gone")
        for name, varies in runs.items()
    ]
    if launcher_of(sweep) is None:
        return states
    return [replace(run, state=State.pending) if run.state is State.missing else run for run in states]


def states_of(sweep: Path, runs: Sequence[str]) -> list[RunState]:
    """The states of the runs with these names."""
    states = {run.folder: run for run in sweep_states(sweep)}
    return [states[sweep / name] for name in runs]


def run_state(folder: Path, varies: str, job: JobRecord | None, seen: str) -> RunState:
    """The state of the run in `folder`.

    Args:
        seen: what the scheduler says of its job.
    """
    statuses = [read_json(job.outcome(folder, rank)) for rank in range(job.tasks)] if job else []
    plan, result = read_json(folder / "plan.json"), read_json(folder / "result.json")
    step, bits_per_byte = _last(folder / "metrics.jsonl")
    return RunState(
        folder=folder,
        varies=varies,
        state=_state(folder, statuses, seen) if result is None or seen in ("pending", "running") else State.finished,
        step=result["steps"] if result else step,
        steps=plan["steps"] if plan else None,
        bits_per_byte=result["bits_per_byte"] if result else bits_per_byte,
        job=job,
        log=_log(folder, job, statuses),
    )


def _state(folder: Path, outcomes: list[dict | None], seen: str) -> State:
    if not outcomes:
        return _state_here(folder)
    statuses = [outcome["status"] for outcome in outcomes if outcome]
    if any(0 < status < STOPPED for status in statuses):
        return State.failed
    if len(statuses) == len(outcomes) and not any(statuses):
        return State.finished
    if seen in ("pending", "running"):
        return State(seen)
    if seen == "unknown":
        return State.running
    return State.stopped if any(statuses) else State.failed  # without a word: killed


def _state_here(folder: Path) -> State:
    """Of a run that was not submitted: it trains, or trained, in the process that its outcome.json names."""
    outcome = read_json(folder / OUTCOME)
    if outcome is None:
        return State.missing
    if outcome["status"] is None:
        elsewhere = outcome["host"] != socket.gethostname()
        return State.running if elsewhere or lives(outcome) else State.failed
    if outcome["status"] == 0:
        return State.finished
    return State.stopped if outcome["status"] > STOPPED else State.failed


def _log(folder: Path, job: JobRecord | None, outcomes: list[dict | None]) -> Path | None:
    if job is None:
        own = list(folder.glob("*.log"))
        return own[0] if own else None
    statuses = {rank: outcome["status"] for rank, outcome in enumerate(outcomes) if outcome}
    failed = [rank for rank, status in statuses.items() if status not in (0, LostProcess.status)]
    silent = [rank for rank in range(job.tasks) if rank not in statuses]
    log = job.log(folder, [*failed, *silent, 0][0])
    return log if log.exists() else None


def _last(metrics: Path, tail: int = 1 << 16) -> tuple[int | None, float | None]:
    """The last step of a record and its last score on held-out text, without reading all of a long record."""
    try:
        with metrics.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - tail))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None, None
    rows = []
    for line in lines:  # the first and the last may be torn
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    rows = [row for row in rows if isinstance(row, dict)]
    steps = [row["step"] for row in rows]
    scores = [row["bits_per_byte"] for row in rows if row["kind"] == "eval"]
    return (steps[-1] if steps else None), (scores[-1] if scores else None)
