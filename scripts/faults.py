"""What becomes of training under faults: `python scripts/faults.py [--trials 50] [--only kill,disk] [--json FILE]`.

Real processes of a tiny run are killed, starved of disk, given damaged files and numbers that are none, and started
again by the same command; tests/faults holds the faults. Needs nothing but this checkout, and root for the disks.
The exit status is 1 if a trial lost anything. `--number N` repeats one trial of each fault.
"""

import argparse
import platform
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from faults.bench import Bench
from faults.registry import FAULTS, Outcome, Trial, attempt

from yxanul import __version__
from yxanul.files import write_json

COLUMNS = {
    "recovered bit for bit": Outcome.recovered,
    "clear stops": Outcome.stopped,
    "lost": Outcome.lost,
    "cannot happen here": Outcome.skipped,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50, help="of each fault")
    parser.add_argument("--number", type=int, help="make this one trial of each fault")
    parser.add_argument("--only", default="", help="faults, or beginnings of their names, with commas between")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    given = parser.parse_args()
    words = given.only.split(",")
    names = [name for name in FAULTS if any(name.startswith(word) for word in words)]
    if not all(any(name.startswith(word) for name in FAULTS) for word in words):
        parser.error(f"--only {given.only}: there are {', '.join(FAULTS)}")
    numbers = range(given.trials) if given.number is None else [given.number]
    console, began, trials = Console(), time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for name in names:
            for number in numbers:
                trials.append(attempt(name, number, given.seed, bench))
                if trials[-1].outcome is Outcome.lost:
                    console.print(f"{name}, trial {number}: LOST: {trials[-1].says}", style="red", markup=False)
    console.print(table(names, trials))
    if given.json:
        write_json(given.json, record(names, trials, given.seed, time.perf_counter() - began))
        console.print(f"written: {given.json}", highlight=False)
    return int(any(trial.outcome is Outcome.lost for trial in trials))


def counts(trials: Iterable[Trial]) -> dict[str, int]:
    """How many trials came to each outcome, in the order of COLUMNS."""
    found = Counter(trial.outcome for trial in trials)
    return {outcome.value: found[outcome] for outcome in COLUMNS.values()}


def table(names: list[str], trials: list[Trial]) -> Table:
    """A row a fault, and their sum."""
    shown = Table("fault", "trials", *COLUMNS, title="training under faults", show_footer=True)
    groups = {name: [trial for trial in trials if trial.fault == name] for name in names}
    for name, those in groups.items():
        shown.add_row(name, str(len(those)), *map(str, counts(those).values()))
    for column, total in zip(shown.columns, ["all", len(trials), *counts(trials).values()], strict=True):
        column.footer = str(total)
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


def record(names: list[str], trials: list[Trial], seed: int, seconds: float) -> dict:
    """What is kept of it: every trial, by its fault."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()} {platform.release()}",
        "versions": {"yxanul": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "seed": seed,
        "counts": {name: counts(trial for trial in trials if trial.fault == name) for name in names},
        "trials": [asdict(trial) | {"outcome": trial.outcome.value} for trial in trials],
    }


if __name__ == "__main__":
    sys.exit(main())
