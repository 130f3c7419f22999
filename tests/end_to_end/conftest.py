"""`python -m yxanul.train` as a user starts it: in real processes, and where that is enough in this one."""

import importlib
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from yxanul import cli
from yxanul.sweep.runs import recorded_job
from yxanul.sweep.states import State, sweep_states
from yxanul.tracking import read_rows
from yxanul.train import train as train_task

ROOT = Path(__file__).resolve().parents[2]

RAISES = """
import signal

def alarm(number, frame):
    raise ZeroDivisionError("of the second alone")

signal.signal(signal.SIGALRM, alarm)
"""
"""Run by every process when Python starts."""

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, also by children, if a script started us with "&"


@pytest.fixture(scope="session")
def start(tiny_run, tmp_path_factory):
    """Starts `python -m yxanul.train` with the tiny run's overrides and more.

    `program` replaces the module, `base` the tiny run's overrides, `inside` is a command that starts the rest of
    its line, and keywords in capitals are environment.
    """
    folder = tmp_path_factory.mktemp("working_directory")

    def popen(
        *overrides: str,
        program=("-m", "yxanul.train"),
        base=tiny_run,
        cwd: Path = folder,
        inside: tuple[str, ...] = (),
        **environment: str,
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
            [*inside, sys.executable, *program, *base, *overrides],
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

    def run(*overrides: str, base=tiny_run, task=train_task) -> tuple[int, str, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which the command sets
        monkeypatch.setattr(sys, "argv", ["yxanul.train", *base, *overrides])
        status = cli.run(task, "train")
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs any command in this process, in an empty folder, and gives the one line in which it refuses.

    `refused("generate", "DIR", "text")`; the status is 1, or argparse's 2 for a flag that is wrong.
    """
    monkeypatch.chdir(tmp_path)

    def run(program: str, *arguments: str) -> str:
        module = importlib.import_module(f"yxanul.{program}" if program != "sweep" else "yxanul.sweep.__main__")
        capfd.readouterr()  # what libraries say when they are imported is not the command's
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which a command that composes sets
        monkeypatch.setattr(sys, "argv", [f"yxanul.{program}", *arguments])
        try:
            if hasattr(module, "main"):
                status = module.main(list(arguments))
            else:
                task = getattr(module, program)
                status = cli.run(task, program, inspect.get_annotations(task, eval_str=True)["config"])
        except SystemExit as left:
            status = left.code
        err = capfd.readouterr().err
        assert status in (1, 2) and re.fullmatch(r"error: \S[^\n]*\n", err), (status, err)
        return err

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


@pytest.fixture
def check_two_ranks(start, undisturbed, wait_for, tmp_path):
    """A sweep whose runs have two ranks each; of the first run the second rank raises, of the second nobody does."""

    def rank_of(folder: Path, rank: int) -> int:
        """The process of a run's rank."""
        named = {f"{name}={rank}".encode() for name in ("SUBMITIT_LOCAL_GLOBALID", "SLURM_PROCID")}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                ours = words[0] == sys.executable.encode() and str(folder / "job").encode() in words
                if ours and named & set((path / "environ").read_bytes().split(b"\0")):
                    return int(path.name)
        raise AssertionError(f"no rank {rank}")

    def check(*launcher: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(RAISES)
        process = start(
            "train.tokens=60000,6000",
            *launcher,
            "hydra.launcher.tasks_per_node=2",
            "hydra.launcher.parallel=1",
            "hydra.launcher.poll_seconds=0.2",
            "--multirun",
            cwd=tmp_path,
            PYTHONPATH=f"{tmp_path}:{ROOT}",
            GLOO_SOCKET_IFNAME="lo",
        )
        records = partial(tmp_path.glob, "multirun_outputs/*/*/metrics.jsonl")
        wait_for(lambda: any(path.read_bytes().count(b"\n") > 2 for path in records()), process)
        [folder] = (path.parent for path in records())
        log = recorded_job(folder).log(folder, 1)
        second = rank_of(folder, 1)
        opened = {os.readlink(path) for path in Path(f"/proc/{second}/fd").iterdir()}
        assert [path for path in opened if path.startswith(str(folder))] == [str(log)]

        began = time.monotonic()
        os.kill(second, signal.SIGALRM)
        said = next(line for line in process.stdout if line.startswith("train.tokens=60000: failed"))
        assert time.monotonic() - began < 20
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and err.startswith("error: 1 of 2 runs did not finish")
        assert re.search(r"failed at step \d+: \[rank1\]: ZeroDivisionError: of the second alone$", said)
        failed, finished = sweep_states(folder.parent)
        assert (failed.state, failed.log, finished.state) == (State.failed, log, State.finished)

        two, one = (
            [row["loss"] for row in read_rows(each / "metrics.jsonl") if "loss" in row]
            for each in (finished.folder, undisturbed[1])
        )
        assert two == pytest.approx(one, rel=1e-5) and len(two) == 23

    return check
