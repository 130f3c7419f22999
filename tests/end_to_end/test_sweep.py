"""Sweeps in real processes: each run once, one that fails stops no other, what is missing is made later."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from yxanul.sweep.runs import recorded_job
from yxanul.sweep.states import State, sweep_states

LOCAL = ("hydra/launcher=submitit_local", "hydra.launcher.parallel=2", "hydra.launcher.poll_seconds=0.2")
GRID = ("seed=1,2", "schedule=cosine,linear", "tracking.wandb.project=${hydra:runtime.choices.schedule}")
LONG = ("train.tokens=20000",)


@pytest.fixture
def sweep_command(start, tmp_path):
    """Runs `python -m yxanul.sweep`; returns exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        process = start(*arguments, program=("-m", "yxanul.sweep"), base=(), cwd=tmp_path)
        out, err = process.communicate(timeout=120)
        return process.returncode, out + err

    return run


def sweep_in(working: Path) -> Path:
    [sweep] = (working / "multirun_outputs").iterdir()
    return sweep


def states(sweep: Path) -> dict[str, State]:
    return {run.varies: run.state for run in sweep_states(sweep)}


def written(sweep: Path) -> dict[Path, int]:
    names = ("result.json", "metrics.jsonl", "config.yaml")
    return {
        path: path.stat().st_mtime_ns
        for path in sweep.rglob("*")
        if path.name in names and path.parent.name != ".hydra"
    }


def rows(sweep: Path, run: str) -> int:
    for path in sweep.glob(f"*{run}*/metrics.jsonl"):
        return path.read_bytes().count(b"\n")
    return 0


def process_words(process: str) -> bytes:
    """The command line of a process; none if it has ended."""
    path = Path(f"/proc/{process}/cmdline")
    return path.read_bytes() if path.exists() else b""


def kill_rank(folder: Path, rank: int) -> None:
    controller = recorded_job(folder).id
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(children[rank]), signal.SIGKILL)


@pytest.mark.parametrize("launcher", [(), LOCAL], ids=["basic", "submitit_local"])
def test_a_sweep_runs_once(train, tmp_path, launcher):
    status, out, err = train(*GRID, *launcher, "--multirun", cwd=tmp_path)
    assert (status, err) == (0, "")
    sweep = sweep_in(tmp_path)
    assert re.fullmatch(r"seed-schedule-[0-9a-f]{8}", sweep.name)
    assert list(states(sweep).values()) == [State.finished] * 4
    assert "4 runs: 4 finished" in out
    table = re.findall(r"^schedule=(\w+) seed=(\d) +finished +(\d+) of \3 +(\d\.\d{4})", out, re.MULTILINE)
    assert sorted(row[:2] for row in table) == [(kind, seed) for kind in ("cosine", "linear") for seed in "12"]
    results = [json.loads(path.read_text())["bits_per_byte"] for path in sweep.glob("*/result.json")]
    assert sorted(row[3] for row in table) == sorted(f"{result:.4f}" for result in results)

    before = written(sweep)
    status, out, err = train(*GRID, *launcher, "--multirun", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "4 runs: 4 finished" in out and ": job " not in out
    assert written(sweep) == before and sweep_in(tmp_path) == sweep


def test_all_launchers_make_the_same_sweep(train, tmp_path):
    """The launcher is no part of the sweep's name, so one can go on where another stopped."""
    assert train("seed=1,2", "--multirun", cwd=tmp_path)[0] == 0
    before = written(sweep_in(tmp_path))
    status, out, _ = train("seed=1,2", *LOCAL, "--multirun", cwd=tmp_path)
    assert status == 0 and out.count("is finished") == 2
    assert written(sweep_in(tmp_path)) == before


@pytest.mark.parametrize("launcher", [(), LOCAL], ids=["basic", "submitit_local"])
def test_a_run_that_fails_stops_no_other(train, tmp_path, launcher):
    status, out, err = train("model.num_heads=3,2", *launcher, "--multirun", cwd=tmp_path)
    assert status == 1
    assert re.fullmatch(r"error: [^\n]*\n", err), err
    assert list(states(sweep_in(tmp_path)).values()) == [State.failed, State.finished]
    assert "2 runs: 1 finished, 1 failed" in out
    assert "model.num_heads=3: must divide model.hidden_size=64" in (out if launcher else err)
    assert "Traceback" not in out + err


def test_a_bug_in_one_run_stops_no_other(command, monkeypatch, tmp_path):
    def train_run(config, folder, console, began):
        if config.seed == 1:
            raise TypeError("of ours")
        return 0

    monkeypatch.setattr("yxanul.training.run.train_run", train_run)
    status, out, err = command("seed=1,2", "--multirun")
    assert status == 1
    assert "2 runs: 1 finished, 1 failed" in out
    [log] = [run.log for run in sweep_states(sweep_in(tmp_path)) if run.state is State.failed]
    assert err == f"error: TypeError: of ours; the traceback is in {log.relative_to(tmp_path)}\n"
    assert "\nTypeError: of ours\n" in log.read_text()


@pytest.mark.parametrize("launcher", [(), LOCAL], ids=["basic", "submitit_local"])
def test_who_asks_for_full_errors_gets_those_of_the_runs(train, tmp_path, launcher):
    status, _, err = train("model.num_heads=3", *launcher, "--multirun", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    [run] = sweep_states(sweep_in(tmp_path))
    assert (status, run.state) == (1, State.failed)
    assert "Traceback" in (run.log.read_text() if launcher else err)


def test_a_killed_run_is_noticed_and_finished_by_the_same_command(start, train, wait_for, tmp_path):
    process = start(*LONG, "seed=1,2", *LOCAL, "--multirun", cwd=tmp_path)
    wait_for(lambda: any(tmp_path.glob("multirun_outputs/*")) and rows(sweep_in(tmp_path), "seed1") > 10, process)
    sweep = sweep_in(tmp_path)
    [folder] = sweep.glob("*seed1*")
    kill_rank(folder, 0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("error: 1 of 2 runs did not finish") and err.count("\n") == 1
    assert re.search(r"^seed=1: failed at step \d+: ", out, re.MULTILINE), out
    assert states(sweep) == {"seed=1": State.failed, "seed=2": State.finished}
    assert str(recorded_job(folder).log(folder).relative_to(tmp_path)) in out

    status, out, err = train(*LONG, "seed=1,2", *LOCAL, "--multirun", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "seed=2: is finished" in out and "seed=1: job " in out
    assert "resuming from" in recorded_job(folder).log(folder).read_text()


def test_one_dead_rank_of_two_ends_its_run(start, wait_for, tmp_path):
    process = start(*LONG, "seed=1", *LOCAL, "hydra.launcher.tasks_per_node=2", "--multirun", cwd=tmp_path)
    wait_for(lambda: any(tmp_path.glob("multirun_outputs/*")) and rows(sweep_in(tmp_path), "seed1") > 5, process)
    [folder] = sweep_in(tmp_path).glob("*seed1*")
    kill_rank(folder, 1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.startswith("error: 1 of 1 runs did not finish")
    assert "1 runs: 1 failed" in out
    assert not process_words(recorded_job(folder).id)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_cancels_the_runs_which_save(start, train, wait_for, tmp_path, number):
    process = start(*LONG, "seed=1,2", *LOCAL, "--multirun", cwd=tmp_path)
    there = partial(tmp_path.glob, "multirun_outputs/*")
    wait_for(lambda: any(there()) and all(rows(sweep_in(tmp_path), run) > 5 for run in ("seed1", "seed2")), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "interrupted; the same command goes on where it can\n"
    assert "2 runs: 2 stopped" in out
    sweep = sweep_in(tmp_path)
    for folder in sweep.glob("nano-*"):
        assert "stopped by SIGTERM" in recorded_job(folder).log(folder).read_text()
        assert not process_words(recorded_job(folder).id)


def test_a_second_launcher_waits_for_the_jobs_of_the_first(start, train, wait_for, tmp_path):
    first = start(*LONG, "seed=1,2", *LOCAL, "--multirun", cwd=tmp_path)
    wait_for(lambda: any(tmp_path.glob("multirun_outputs/*")) and rows(sweep_in(tmp_path), "seed1") > 5, first)
    first.kill()
    first.communicate()
    sweep = sweep_in(tmp_path)
    jobs = {folder: recorded_job(folder) for folder in sweep.glob("nano-*")}
    status, out, err = train(*LONG, "seed=1,2", *LOCAL, "--multirun", cwd=tmp_path)
    assert (status, err) == (0, ""), out
    assert {folder: recorded_job(folder) for folder in jobs} == jobs


def test_a_detached_sweep_is_looked_after_from_another_terminal(train, sweep_command, tmp_path):
    status, out, err = train("seed=1,2", *LOCAL, "hydra.launcher.detach=true", "--multirun", cwd=tmp_path)
    assert (status, err) == (0, "")
    sweep = str(sweep_in(tmp_path).relative_to(tmp_path))
    assert f"python -m yxanul.sweep status {sweep}" in out
    assert (sweep_in(tmp_path) / "sweep.log").exists()
    status, out = sweep_command("wait", "--poll", "0.2", sweep)
    assert status == 0 and "2 runs: 2 finished" in out, out
    status, out = sweep_command("status", sweep)
    assert status == 0 and len(re.findall(r"^seed=\d +finished +23 of 23 ", out, re.MULTILINE)) == 2
    status, out = sweep_command("logs", sweep, "seed=2")
    assert status == 0 and "23/23" in out and out.startswith("seed=2: ") and "seed=1: " not in out
    assert sweep_command("cancel", sweep) == (0, "no job of this sweep is on its way\n")


@pytest.mark.slow
def test_a_folder_of_the_users_takes_two_sweeps(train, tmp_path):
    """Nothing is overwritten: the runs of both are on its list."""
    for seeds in ("1,2", "2,3"):
        assert train(f"seed={seeds}", "hydra.sweep.dir=mine", "--multirun", cwd=tmp_path)[0] == 0
    assert [run.varies for run in sweep_states(tmp_path / "mine")] == ["seed=1", "seed=2", "seed=3"]


def test_two_runs_in_one_folder_are_refused(train, tmp_path):
    status, _, err = train("seed=1,2", "hydra.sweep.subdir=same", "--multirun", cwd=tmp_path)
    assert status == 1
    assert err.startswith("error: same: two runs of the sweep (") and err.count("\n") == 1


def test_a_folder_without_a_sweep_is_one_line(sweep_command, tmp_path):
    status, said = sweep_command("status", str(tmp_path))
    assert status == 1
    assert said == f"error: {tmp_path}: holds no sweep; name a folder below multirun_outputs/\n"


def test_help_is_there():
    done = subprocess.run([sys.executable, "-m", "yxanul.sweep", "--help"], capture_output=True, text=True, check=True)
    assert all(word in done.stdout for word in ("status", "wait", "logs", "cancel", "examples:"))
