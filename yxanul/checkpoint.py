"""`python -m yxanul.checkpoint list|inspect|verify|prune|average RUN`: look after the checkpoints of a run."""

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from yxanul.command import command_parser, run_command
from yxanul.errors import UserError

EPILOG = """\
examples:
  python -m yxanul.checkpoint list outputs/RUN
  python -m yxanul.checkpoint verify outputs/RUN && echo all whole
  python -m yxanul.checkpoint prune outputs/RUN --keep 1
  python -m yxanul.checkpoint average outputs/RUN --last 3 --to outputs/RUN-averaged
"""

COMMANDS = {
    "list": "a line for every checkpoint: step, tokens, bytes on disk",
    "inspect": "what the newest holds: every tensor with its shape and norm",
    "verify": "hold every file against its hash; status 1 if one does not fit",
    "prune": "remove all but the newest",
    "average": "a run whose weights are the mean of the last checkpoints'",
}


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_command(lambda: RUN[given.command](given, Console(markup=False, emoji=False)))


def parser() -> argparse.ArgumentParser:
    parser = command_parser("checkpoint", "Look after the checkpoints of a run.", EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("run", type=Path, metavar="RUN", help="its folder, below outputs/ or multirun_outputs/")
        if name == "prune":
            command.add_argument("--keep", type=int, default=1, metavar="N", help="how many to leave (1)")
        if name == "average":
            command.add_argument("--last", type=int, default=3, metavar="N", help="how many checkpoints (3)")
            command.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to make")
    return parser


def listed(given: argparse.Namespace, console: Console) -> int:
    from yxanul.training.checkpoint import read_state

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("checkpoint", "step", "tokens", "bytes read", "size"):
        table.add_column(name, justify="left" if name == "checkpoint" else "right")
    for path in _checkpoints(given.run):
        state = read_state(path)
        size = sum(file.stat().st_size for file in path.iterdir())
        table.add_row(path.name, f"{state.step:,}", f"{state.tokens:,}", f"{state.bytes:,}", f"{size / 2**20:,.1f} MiB")
    console.print(table)
    return 0


def inspect(given: argparse.Namespace, console: Console) -> int:
    from safetensors import SafetensorError, safe_open

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("tensor", "shape", "type", "norm"):
        table.add_column(name, justify="right" if name == "norm" else "left")
    path = _checkpoints(given.run)[-1]
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 it is no dict
                    tensor = tensors.get_tensor(name)
                    shape, kind = " x ".join(map(str, tensor.shape)), str(tensor.dtype).removeprefix("torch.")
                    table.add_row(name, shape, kind, f"{tensor.float().norm().item():.5g}")
        except SafetensorError as error:
            raise UserError(f"{file}: is damaged ({error})") from error
    console.print(f"{path}", soft_wrap=True, highlight=False)
    console.print(table)
    return 0


def verify(given: argparse.Namespace, console: Console) -> int:
    from yxanul.training import checkpoint

    status = 0
    for path in _checkpoints(given.run):
        try:
            checkpoint.verify(path)
            console.print(f"{path.name}: whole", highlight=False)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    return status


def prune(given: argparse.Namespace, console: Console) -> int:
    from yxanul.training.run import run_lock

    if given.keep < 1:
        raise UserError(f"--keep {given.keep}: must be at least 1")
    with run_lock(given.run):
        for path in _checkpoints(given.run)[: -given.keep]:
            shutil.rmtree(path)
            console.print(f"removed {path.name}", highlight=False)
    return 0


def average(given: argparse.Namespace, console: Console) -> int:
    from yxanul.inference.average import average_run

    found = _checkpoints(given.run)
    if not 2 <= given.last <= len(found):
        raise UserError(
            f"--last {given.last}: the run has {len(found)} checkpoints, and a mean is of at least 2; keep more by "
            "checkpoint.keep"
        )
    if given.to.exists():
        raise UserError(f"{given.to}: is there already; name another folder with --to, or remove it")
    try:
        average_run(given.run, found[-given.last :], given.to)
    except OSError as error:
        raise UserError(f"{given.to}: cannot be written ({error.strerror}); name another folder with --to") from error
    console.print(f"{given.to}: the mean of {', '.join(path.name for path in found[-given.last :])}")
    return 0


def _checkpoints(run: Path) -> list[Path]:
    """Those of a run, oldest first; raises UserError if there is none."""
    from yxanul.inference.loading import newest_checkpoint, run_config
    from yxanul.training.checkpoint import checkpoints

    run_config(run)
    return checkpoints(newest_checkpoint(run).parent)


RUN = {"list": listed, "inspect": inspect, "verify": verify, "prune": prune, "average": average}

if __name__ == "__main__":
    sys.exit(main())
