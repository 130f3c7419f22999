"""`python -m yxanul.train` as a user starts it: in real processes, and where that is enough in this one."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from yxanul import cli
from yxanul.train import train as train_task

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def start(tiny_run, tmp_path_factory):
    """Starts `python -m yxanul.train` with the tiny run's overrides and more.

    `program` replaces the module, `base` the tiny run's overrides, and keywords in capitals are environment.
    """
    folder = tmp_path_factory.mktemp("working_directory")

    def popen(
        *overrides: str, program=("-m", "yxanul.train"), base=tiny_run, cwd: Path = folder, **environment: str
    ) -> subprocess.Popen:
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
            "PYTHONPATH": str(ROOT),
            "HYDRA_FULL_ERROR": "0",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, *program, *base, *overrides],
            cwd=cwd,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return popen


@pytest.fixture(scope="session")
def train(start):
    """As `start`, but waits: exit status, stdout, stderr."""

    def run(*overrides: str, timeout: float = 120, **rest) -> tuple[int, str, str]:
        process = start(*overrides, **rest)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return process.returncode, out, err

    return run


@pytest.fixture
def command(tiny_run, tmp_path, monkeypatch, capfd):
    """Runs the command in this process, in an empty folder; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that what the command sets is undone

    def run(*overrides: str, base=tiny_run) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["yxanul.train", *base, *overrides])
        status = cli.run(train_task, "train")
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def undisturbed(train, tmp_path_factory):
    """The working directory of a finished run that nobody disturbed, its run's folder, and what it printed."""
    working = tmp_path_factory.mktemp("undisturbed")
    status, out, err = train(cwd=working)
    assert (status, err) == (0, "")
    [folder] = (working / "outputs").iterdir()
    return working, folder, out


@pytest.fixture
def unfinished(undisturbed, tmp_path) -> Path:
    """A copy of the finished run, as if it had been killed some time after its last checkpoint but one."""
    folder = shutil.copytree(undisturbed[1], tmp_path / "run")
    (folder / "result.json").unlink()
    shutil.rmtree(max((folder / "checkpoints").glob("step-*")))
    return folder


@pytest.fixture(scope="session")
def wait_for():
    """Waits until a condition holds, or a process ends."""

    def wait(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait
