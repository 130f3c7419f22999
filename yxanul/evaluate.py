"""`python -m yxanul.evaluate RUN...`: what models make of the same text, in bits per byte."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from yxanul.command import command_parser, run_command
from yxanul.errors import UserError

EPILOG = """\
examples:
  python -m yxanul.evaluate outputs/RUN                                  # on its own held-out text
  python -m yxanul.evaluate outputs/RUN outputs/OTHER --data texts/ --context-bytes 1024 --by position
  python -m yxanul.evaluate outputs/RUN gpt2/ --data book.txt --by source --by length

A model is a run, or a Hugging Face folder (for which transformers must be installed). Bits per byte can be compared
whatever the tokenizers; that each model sees the same text before a token, --context-bytes makes sure of.
"""

BY = ("source", "length", "position")


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_command(lambda: evaluate(given, Console()))


def parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate", "What models make of the same text, in bits per byte.", EPILOG)
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
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of what is printed (table)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def evaluate(given: argparse.Namespace, console: Console) -> int:
    from yxanul import hardware
    from yxanul.config import Device
    from yxanul.inference.judge import documents_of, held_out_of, judge, open_judged
    from yxanul.reporting.score_table import score_tables

    for name in ("bytes", "context_bytes"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(given, name)}: must be at least 1")
    device = hardware.select_device(Device(given.device))
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


if __name__ == "__main__":
    sys.exit(main())
