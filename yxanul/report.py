"""`python -m yxanul.report DIR...`: what runs and sweeps cost to the same quality, and what each choice was worth.

Reads finished and running runs, prints tables and writes a page with the curves.
"""

import argparse
import csv
import io
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from yxanul.command import at_least, command_parser, run_command
from yxanul.errors import UserError
from yxanul.files import atomic_path
from yxanul.ledger.attribution import SPENT, Shares
from yxanul.ledger.ledger import Against, Ledger, make_ledger
from yxanul.ledger.quality import AXES, is_bound
from yxanul.ledger.runs import Run, find_runs
from yxanul.reporting.ledger_table import ledger_tables, ledger_worth
from yxanul.reporting.report_page import PageTable, report_page

PARTS = ("total", "learning", "throughput")
FORMATS = ("table", "md", "csv", "json")

EPILOG = """\
examples:
  python -m yxanul.report outputs/nano-bf16-superbpe8k-ultra-stdlib-seed1-1a2b3c4d
  python -m yxanul.report multirun_outputs/tokenizers --target 1.9 --axis total_seconds
  python -m yxanul.report multirun_outputs/ladder --against previous --format md > ladder.md
  python -m yxanul.report outputs/FULL outputs/WITHOUT_MUON outputs/WITHOUT_SUPERBPE --against without
  python -m yxanul.report multirun_outputs/tokenizer-optimizer-seed-1a2b3c4d --shapley

A run reaches the target where the line between two of its evaluations crosses it: evaluate often (evaluate.every). One
that was there at its first evaluation took at most (≤) that long; a lower --target tells more of it. --axis
prepared_seconds adds tokenizer, tokens, start-up and compilation to training, total_seconds evaluations as well.
Choices are compared seed by seed; with two seeds or more an interval of 95% stands beside each factor.
--against without takes the first recipe for the whole one, and each other for that with one choice left out.
--shapley takes a full grid of recipes, the first of which has none of the choices (tokenizer=a,b optimizer=c,d).
"""


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_command(lambda: report(given, Console(markup=False, emoji=False)))


def parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "report", "What runs and sweeps cost to the same quality, and what each choice was worth.", EPILOG
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders of runs or of sweeps")
    parser.add_argument("--target", type=at_least(0), metavar="BITS", help="bits per byte (what all runs reach)")
    parser.add_argument("--axis", choices=SPENT, default=SPENT[0], help=f"what costs are counted in ({SPENT[0]})")
    parser.add_argument(
        "--against",
        choices=[each.value for each in Against],
        default=Against.first.value,
        help="what each choice is compared with, in the order of the sweep (first)",
    )
    parser.add_argument(
        "--shapley", action="store_true", help="share the whole among the choices of a full grid, each there or not"
    )
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of what is printed (table)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (default: report.html in the first DIR)")
    return parser


def report(given: argparse.Namespace, console: Console) -> int:
    ledger = make_ledger(find_runs(given.folders), given.target, given.axis, Against(given.against), given.shapley)
    tables = ledger_tables(ledger)
    if given.format == "table":
        print_tables(ledger, tables, console)
    else:
        forms = {"md": lambda: markdown(ledger, tables), "csv": lambda: as_csv(ledger), "json": lambda: as_json(ledger)}
        print(forms[given.format](), end="")
    path = given.output or given.folders[0] / "report.html"
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(_page(ledger, tables), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file with --output") from error
    if given.format == "table":
        console.print(f"\nwritten: {path}", highlight=False, soft_wrap=True)
    return 0


def print_tables(ledger: Ledger, tables: list[PageTable], console: Console) -> None:
    for each in tables:
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for number, name in enumerate(each.header):
            table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
        for row in each.rows:
            table.add_row(*map(Text, row))
        console.print(Text(f"\n{each.title}", "bold"), table)
    if ledger.warning:
        console.print(Text(f"\n{ledger.warning}", "yellow"))


def markdown(ledger: Ledger, tables: list[PageTable]) -> str:
    parts = [f"{ledger.warning}\n"] if ledger.warning else []
    for table in tables:
        rows = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        parts.append(f"**{table.title}**\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in cells))
    return "\n".join(parts)


def as_csv(ledger: Ledger) -> str:
    """Plain numbers: of Shapley's shares a row each, the whole last; without them, of the runs."""
    output = io.StringIO()
    csv.writer(output, lineterminator="\n").writerows(_shares(ledger.shares) if ledger.shares else _runs(ledger))
    return output.getvalue()


def _shares(shares: Shares) -> Iterator[list[object]]:
    """A row a choice: its ratios, and their intervals, empty where there are none."""
    yield ["choice", "seeds", *(f"{part}{end}" for part in PARTS for end in ("", "_low", "_high"))]
    for each in (*shares.factors, shares.whole):
        estimates = [getattr(each, part) for part in PARTS]
        yield [each.name, each.pairs, *(end for part in estimates for end in (part.ratio, part.low, part.high))]


def _runs(ledger: Ledger) -> Iterator[list[object]]:
    """A row a run: its costs at the target, empty where it never arrives."""
    yield ["run", "choice", "seed", "finished", "best_bits_per_byte", "target", *AXES, "folder"]
    for group in ledger.groups:
        for run, reached in zip(group.runs, group.reached, strict=True):
            costs = asdict(reached).values() if reached else [""] * len(AXES)
            known = [run.name, group.name, run.config["seed"], run.result is not None, run.best, ledger.target]
            yield [*known, *costs, str(run.folder)]


def as_json(ledger: Ledger) -> str:
    groups = [
        {
            "choice": group.name,
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.folder),
                    "seed": run.config["seed"],
                    "finished": run.result is not None,
                    "best_bits_per_byte": run.best,
                    "seconds": asdict(run.times),
                    "reached": asdict(reached) if reached else None,
                    "at_most": is_bound(run, ledger.target),
                }
                for run, reached in zip(group.runs, group.reached, strict=True)
            ],
            "factor": asdict(factor) if factor else None,
        }
        for group, factor in zip(ledger.groups, ledger.factors, strict=True)
    ]
    about = {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "command": _command()}
    found = {"target": ledger.target, "axis": ledger.axis, "against": ledger.against.value, "warning": ledger.warning}
    shares = asdict(ledger.shares) if ledger.shares else None
    return json.dumps(about | _environment(ledger) | found | {"choices": groups, "shapley": shares}, indent=2) + "\n"


def _environment(ledger: Ledger) -> dict[str, list[object]]:
    """What the finished runs ran on and with, each different device and set of versions once."""
    results = [run.result for run in _members(ledger) if run.result]
    return {
        "devices": list(dict.fromkeys(result["device"] for result in results)),
        "versions": [dict(items) for items in dict.fromkeys(tuple(result["versions"].items()) for result in results)],
    }


def _members(ledger: Ledger) -> list[Run]:
    return [run for group in ledger.groups for run in group.runs]


def _command() -> str:
    return f"python -m yxanul.report {shlex.join(sys.argv[1:])}"


def _page(ledger: Ledger, tables: list[PageTable]) -> str:
    about = [datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")]
    about += [ledger.warning] if ledger.warning else []
    return report_page(_members(ledger), tables, about, _command(), ledger_worth(ledger))


if __name__ == "__main__":
    sys.exit(main())
