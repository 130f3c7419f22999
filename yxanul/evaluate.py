"""`python -m yxanul.evaluate RUN...`: what models make of the same text, in bits per byte, or of the same tasks."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from yxanul.command import command_parser, run_command
from yxanul.errors import UserError

if TYPE_CHECKING:
    import torch

    from yxanul.inference.harness import Measured

EPILOG = """\
examples:
  python -m yxanul.evaluate outputs/RUN                                  # on its own held-out text
  python -m yxanul.evaluate outputs/RUN outputs/OTHER --data texts/ --context-bytes 1024 --by position
  python -m yxanul.evaluate outputs/RUN gpt2/ --data book.txt --by source --by length
  python -m yxanul.evaluate outputs/RUN gpt2/ --tasks arc_easy,lambada_openai           # what the harness asks
  python -m yxanul.evaluate outputs/RUN --tasks 'mine_*' --task-path tasks/

A model is a run, or a Hugging Face folder (for which transformers must be installed). Bits per byte can be compared
whatever the tokenizers; that each model sees the same text before a token, --context-bytes makes sure of.
Tasks are those of EleutherAI's lm-evaluation-harness (for which it must be installed), or YAML files as it reads them.
"""

BY = ("source", "length", "position")
OF_TEXT = ("data", "context_bytes", "by")
OF_TASKS = ("task_path", "limit")


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_command(lambda: evaluate(given, Console(markup=False, emoji=False)))


def parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate", "What models make of the same text, in bits per byte, or of tasks.", EPILOG)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="folders of runs, or of Hugging Face's")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="text: a file or folder (default: the first run's own)"
    )
    parser.add_argument("--text-column", default="text", metavar="NAME", help="of parquet and jsonl (text)")
    parser.add_argument("--bytes", type=int, default=1_000_000, metavar="N", help="of text, at most (1000000)")
    parser.add_argument(
        "--context-bytes", type=int, metavar="N", help="of text before a token, at most (all that fits)"
    )
    parser.add_argument("--by", action="append", choices=BY, default=[], help="a table more; may be repeated")
    parser.add_argument("--tasks", metavar="TASK[,TASK]", help="of lm-evaluation-harness, instead of text")
    parser.add_argument("--task-path", type=Path, metavar="DIR", help="of more tasks, as YAML files")
    parser.add_argument("--limit", type=int, metavar="N", help="examples of each task, from its first (all)")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of what is printed (table)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def evaluate(given: argparse.Namespace, console: Console) -> int:
    from yxanul import hardware
    from yxanul.config import Device
    from yxanul.inference.judge import documents_of, held_out_of, judge, open_judged
    from yxanul.reporting.score_table import score_tables

    for name in ("bytes", "context_bytes", "limit"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(given, name)}: must be at least 1")
    device = hardware.select_device(Device(given.device))
    if given.tasks is not None:
        return ask(given, device, console)
    for name in OF_TASKS:
        if getattr(given, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} {getattr(given, name)}: is of tasks; --tasks must name some")
    opened = [open_judged(folder, device) for folder in given.models]
    if given.data is not None:
        texts = documents_of(given.data, given.text_column, given.bytes)
    else:
        texts = held_out_of(given.models[0], given.bytes)
    verdicts = [judge(each, texts, given.context_bytes, device) for each in opened]
    if given.format == "json":
        rows = [
            {"model": each.judged.name, "perplexity": each.perplexity, **asdict(each.whole)}
            | {"by": {name: [asdict(part) for part in parts] for name, parts in each.by.items()}}
            for each in verdicts
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for table in score_tables(verdicts, given.by):
        console.print(table)
    return 0


def ask(given: argparse.Namespace, device: "torch.device", console: Console) -> int:
    """Have lm-evaluation-harness ask the models."""
    try:
        from yxanul.inference.harness import measure, open_subject, open_tasks
    except ImportError as error:
        raise UserError("--tasks: takes lm-evaluation-harness; pip install 'yxanul[eval]'") from error
    for name in OF_TEXT:
        if getattr(given, name):
            raise UserError(f"--{name.replace('_', '-')}: is about text, and tasks bring their own; leave it out")
    tasks = open_tasks(given.tasks.split(","), given.task_path)
    progress = Console(file=sys.stderr)
    opened = [open_subject(folder, device, progress) for folder in given.models]
    found = {folder: measure(subject, tasks, given.limit) for folder, subject in zip(given.models, opened, strict=True)}
    if given.format == "json":
        rows = [{"model": folder.name, **asdict(each)} for folder, measured in found.items() for each in measured]
        print(json.dumps(rows, indent=2))
    else:
        console.print(task_table(found))
    return 0


def task_table(found: "dict[Path, list[Measured]]") -> Table:
    """A row a metric, and two columns a model: its value and the standard error of it."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("task", overflow="fold")
    table.add_column("metric", overflow="fold")
    for folder in found:
        table.add_column(folder.name, justify="right", overflow="fold")
        table.add_column("stderr", justify="right")
    for row in zip(*found.values(), strict=True):
        values = [(f"{each.value:.4f}", "" if each.stderr is None else f"{each.stderr:.4f}") for each in row]
        table.add_row(row[0].task, row[0].metric, *(cell for pair in values for cell in pair))
    return table


if __name__ == "__main__":
    sys.exit(main())
