"""The commands that take folders and flags, not a composition: what their parsers and their ends have in common."""

import argparse
import signal
import sys
from collections.abc import Callable

from yxanul.errors import UserError


def command_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of `python -m yxanul.NAME`; its help shows `epilog` as it stands."""
    return argparse.ArgumentParser(
        f"python -m yxanul.{name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_command(action: Callable[[], int]) -> int:
    """The exit status of `action`; 1 after a line on stderr for an error that the user can mend."""
    try:
        return action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
