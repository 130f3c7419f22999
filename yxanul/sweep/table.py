"""The runs of a sweep and where they stand, for people."""

import os
from collections import Counter
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from yxanul.sweep.states import RunState, State

STYLES = {
    State.finished: "green",
    State.running: "cyan",
    State.pending: "dim",
    State.failed: "bold red",
    State.stopped: "yellow",
    State.missing: "dim",
}


def sweep_table(sweep: Path, runs: list[RunState]) -> RenderableType:
    """A row a run, then how many are in which state; with the logs below, as paths are long."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    for heading in ("state", "step", "bits per byte", "job"):
        table.add_column(heading, justify="left" if heading in ("state", "job") else "right", no_wrap=True)
    for run in runs:
        step = "" if run.step is None else f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
        score = "" if run.bits_per_byte is None else f"{run.bits_per_byte:.4f}"
        state = Text(run.state.value, STYLES[run.state])
        table.add_row(Text(run.varies or run.folder.name), state, step, score, run.job.id if run.job else "")
    counts = Counter(run.state for run in runs)
    summary = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    head = Text(f"\n{shown(sweep)}\n", "bold", no_wrap=True, overflow="ignore")
    return Group(head, table, Text(f"\n{len(runs)} runs: {summary}"))


def logs(runs: list[RunState]) -> str:
    """A line for each run that has a log and is not finished; not to be wrapped, so that paths can be copied."""
    named = [(run.varies or run.folder.name, run.log) for run in runs if run.log and run.state is not State.finished]
    return "".join(f"  log of {name}: {shown(log)}\n" for name, log in named)


def shown(path: Path) -> str:
    """A path as it is shortest from here."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
