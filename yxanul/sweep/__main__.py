"""`python -m yxanul.sweep status|wait|logs|cancel SWEEP`: look after a sweep from any terminal."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from yxanul.command import at_least, command_parser, run_command
from yxanul.sweep import scheduler
from yxanul.sweep.launcher import report
from yxanul.sweep.runs import launcher_of, recorded_runs
from yxanul.sweep.states import ON_ITS_WAY, State, sweep_states
from yxanul.sweep.table import shown
from yxanul.sweep.wait import Wait

EPILOG = """\
examples:
  python -m yxanul.train --multirun tokenizer=t80k,t180k seed=1,2 hydra/launcher=slurm hydra.launcher.detach=true
  python -m yxanul.sweep status multirun_outputs/tokenizer-seed-1a2b3c4d
  python -m yxanul.sweep wait multirun_outputs/tokenizer-seed-1a2b3c4d && echo all finished
  python -m yxanul.sweep logs multirun_outputs/tokenizer-seed-1a2b3c4d seed=2 tokenizer=t80k

A run that is not finished is started again by the command that started the sweep; finished runs are left alone.
"""

COMMANDS = {
    "status": "print every run's state, step, bits per byte and job",
    "wait": "return when no run is on its way: status 0 if all are finished, else 1",
    "logs": "print the logs of the jobs, or of those of the runs that vary as named",
    "cancel": "ask every job to save and leave; the sweep's command goes on from there",
}


def main(arguments: list[str] | None = None) -> int:
    parser = command_parser(
        "sweep", "Look after a sweep from any terminal: its folder holds all there is to know.", EPILOG
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("sweep", type=Path, metavar="SWEEP", help="its folder, below multirun_outputs/")
        if name == "wait":
            command.add_argument("--poll", type=at_least(0), default=5, help="seconds between two looks (default: 5)")
        if name == "logs":
            command.add_argument("runs", nargs="*", metavar="KEY=VALUE", help="only runs with all of these")
    given = parser.parse_args(arguments)
    return run_command(lambda: RUN[given.command](given, Console(markup=False, emoji=False)))


def status(given: argparse.Namespace, console: Console) -> int:
    report(given.sweep, console)
    return 0


def wait(given: argparse.Namespace, console: Console) -> int:
    while launcher_of(given.sweep):
        time.sleep(given.poll)
    looker = Wait(given.sweep, list(recorded_runs(given.sweep)), None, console, None, given.poll)
    looker.until_ended()
    report(given.sweep, console)
    return int(any(run.state is not State.finished for run in sweep_states(given.sweep)))


def logs(given: argparse.Namespace, console: Console) -> int:
    for run in sweep_states(given.sweep):
        if set(given.runs) <= set(run.varies.split()) and run.log:
            for log in sorted(run.log.parent.glob(f"{run.job.id}_*_log.out")) if run.job else [run.log]:
                console.rule(f"{run.varies or run.folder.name}: {shown(log)}", align="left", characters="-")
                print(log.read_text(errors="replace"), flush=True)
    return 0


def cancel(given: argparse.Namespace, console: Console) -> int:
    process = launcher_of(given.sweep)
    if process:
        os.kill(process, signal.SIGTERM)  # it cancels its jobs
        console.print(f"asked process {process}, which starts this sweep's runs, to cancel them", soft_wrap=True)
        return 0
    cancelled = [run for run in sweep_states(given.sweep) if run.job and run.state in ON_ITS_WAY]
    for run in cancelled:
        scheduler.cancel(run.folder, run.job)
        console.print(f"cancelled job {run.job.id}: {run.varies}", highlight=False, soft_wrap=True, markup=False)
    if not cancelled:
        console.print("no job of this sweep is on its way")
    return 0


RUN: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "status": status,
    "wait": wait,
    "logs": logs,
    "cancel": cancel,
}

if __name__ == "__main__":
    sys.exit(main())
