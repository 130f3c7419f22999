"""Whole runs in this process."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from yxanul.training.run import train_run
from yxanul.validation import validate


@pytest.fixture(scope="session")
def run(compose, tiny_run):
    """Runs the tiny run with further overrides in a folder; returns the exit status and what was printed."""

    def start(folder: Path, *overrides: str) -> tuple[int, str]:
        config = compose(*tiny_run, *overrides)
        validate(config)
        console = Console(file=io.StringIO(), width=200)
        return train_run(config, folder, console, time.perf_counter()), console.file.getvalue()

    return start
