"""The commands that take folders and flags, not a composition: what their parsers and their ends have in common."""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from yxanul.errors import UserError


class Parser(argparse.ArgumentParser):
    """As its base class, but what is wrong is one line like any other error, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help says more\n")


def command_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of `python -m yxanul.NAME`; its help shows `epilog` as it stands."""
    return Parser(
        f"python -m yxanul.{name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """A type of arguments: whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} to {most}")
        return int(text)

    return read


def at_least(least: float) -> Callable[[str], float]:
    """A type of arguments: finite numbers from `least` on."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is no number of at least {least:g}")
        return value

    return read


def run_command(action: Callable[[], int]) -> int:
    """The exit status of `action`; 1 after a line on stderr for an error that the user can mend.

    128 + the signal's number where it was interrupted, or nobody reads what it prints.
    """
    try:
        return action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # as `| head` makes; Python would complain of it again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
