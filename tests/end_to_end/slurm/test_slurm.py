"""Sweeps on a real SLURM of one node without accounting."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors

from yxanul.sweep.runs import recorded_job, recorded_runs
from yxanul.sweep.states import State, sweep_states
from yxanul.tracking import read_rows

pytestmark = pytest.mark.usefixtures("cluster")

SLURM = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_task=null", "hydra.launcher.poll_seconds=0.2")
LONG = ("train.tokens=20000",)


def sweep_in(working: Path) -> Path:
    [sweep] = (working / "multirun_outputs").iterdir()
    return sweep


def states(sweep: Path) -> list[State]:
    return [run.state for run in sweep_states(sweep)]


def only_run(working: Path) -> Path:
    [run] = sweep_states(sweep_in(working))
    return run.folder


def trained(working: Path, varies: str = "") -> int:
    """How many lines the record of the run that varies so has; of a sweep of one run it need not be said."""
    for path in working.glob("multirun_outputs/*/*/metrics.jsonl"):
        if recorded_runs(path.parents[1])[path.parent.name].endswith(varies):
            return path.read_bytes().count(b"\n")
    return 0


def ranks(job: str) -> list[int]:
    """The processes that run a job's command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"submitit.core._submit" in words and f"SLURM_JOB_ID={job}".encode() in environment:
            found += [int(path.name)] if b"srun" not in words[0] else []
    return found


def check_same(folder: Path, other: Path) -> None:
    """Two runs learned the same, however often one of them was stopped."""
    results = [json.loads((each / "result.json").read_text()) for each in (folder, other)]
    losses = [[row["loss"] for row in read_rows(each / "metrics.jsonl") if "loss" in row] for each in (folder, other)]
    assert losses[0] == losses[1]
    paths = [each / result["checkpoint"] for each, result in zip((folder, other), results, strict=True)]
    for name in ("model.safetensors", "optimizer.safetensors"):
        tensors = [dict(safetensors.deserialize((path / name).read_bytes())) for path in paths]
        assert tensors[0] == tensors[1]


def check_requeued(log: Path) -> None:
    text = log.read_text()
    assert text.count("Starting with JobEnvironment") >= 2  # a slow machine reaches its limit more than once
    assert "stopped by SIGUSR2 at step" in text and "resuming from" in text


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory) -> Path:
    """The folder of a finished run that nobody disturbed."""
    working = tmp_path_factory.mktemp("alone")
    assert train(*LONG, "seed=1", "--multirun", cwd=working)[0] == 0
    return only_run(working)


@pytest.fixture(scope="module")
def limited(start, wait_for, tmp_path_factory) -> tuple[subprocess.Popen, Path]:
    """A sweep of a run whose time limit is a minute, and the run's folder; it pauses until SLURM sends a signal."""
    working = tmp_path_factory.mktemp("limited")
    limit = ("hydra.launcher.time=1", "hydra.launcher.signal_seconds=30", "hydra.launcher.requeues=9")
    process = start(*LONG, "seed=1", *SLURM, *limit, "--multirun", cwd=working)
    wait_for(lambda: trained(working) > 10, process)
    folder = only_run(working)
    [rank] = ranks(recorded_job(folder).id)
    os.kill(rank, signal.SIGSTOP)  # before each of its signals SLURM sends SIGCONT
    return process, folder


@pytest.mark.usefixtures("limited")  # whose time passes during the tests up to that of the limit
def test_a_sweep_runs_once(train, tmp_path, job_ids):
    grid = ("seed=1,2", *SLURM)
    status, out, err = train(*grid, "--multirun", cwd=tmp_path)
    assert (status, err) == (0, ""), out
    assert "2 runs: 2 finished" in out and len(set(job_ids(out))) == 2
    for run in sweep_states(sweep_in(tmp_path)):
        assert re.search(rf"{re.escape(run.varies)} +finished +23 of 23 +\d\.\d{{4}} +{run.job.id}\b", out)
        assert run.log == run.folder / "job" / f"{run.job.id}_0_log.out"
        assert "finished" in run.log.read_text()
    status, out, err = train(*grid, "--multirun", cwd=tmp_path)
    assert (status, err, job_ids(out)) == (0, "", [])


def test_failed_killed_and_cancelled_runs_stop_no_other(start, train, wait_for, tmp_path, job_ids):
    sweep = (*LONG, "model.num_heads=1,2,3,4", *SLURM)
    process = start(*sweep, "--multirun", cwd=tmp_path)
    wait_for(lambda: all(trained(tmp_path, f"heads={heads}") > 10 for heads in (1, 2)), process)
    killed, cancelled, *_ = (run.job.id for run in sweep_states(sweep_in(tmp_path)))
    [rank] = ranks(killed)
    os.kill(rank, signal.SIGKILL)
    subprocess.run(["scancel", cancelled], check=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("error: 3 of 4 runs did not finish") and err.count("\n") == 1
    one, two, three, four = states(sweep_in(tmp_path))
    assert (one, three, four) == (State.failed, State.failed, State.finished)
    assert two in (State.stopped, State.failed)
    assert "must divide model.hidden_size=64" in out
    assert re.search(r"^model.num_heads=1: failed at step \d+: ", out, re.MULTILINE)

    status, out, err = train(*sweep, "--multirun", cwd=tmp_path)
    assert status == 1 and err.startswith("error: 1 of 4 runs did not finish")
    assert states(sweep_in(tmp_path)) == [State.finished, State.finished, State.failed, State.finished]
    assert len(job_ids(out)) == 3 and "model.num_heads=4: is finished" in out


def test_a_preempted_run_is_requeued_and_ends_as_if_left_alone(start, alone, wait_for, tmp_path):
    process = start(*LONG, "seed=1", *SLURM, "hydra.launcher.time=30", "--multirun", cwd=tmp_path)
    wait_for(lambda: trained(tmp_path) > 10, process)
    folder = only_run(tmp_path)
    job = recorded_job(folder)
    subprocess.run(["scancel", "--signal=USR2", job.id], check=True)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out
    assert recorded_job(folder) == job
    check_requeued(job.log(folder))
    check_same(folder, alone)


def test_an_interrupt_cancels_the_jobs(start, wait_for, tmp_path, job_ids):
    process = start(*LONG, "seed=1,2", *SLURM, "--multirun", cwd=tmp_path)
    wait_for(lambda: all(trained(tmp_path, f"seed={seed}") > 3 for seed in (1, 2)), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "2 runs: 2 stopped" in out or "failed" in out
    queue = subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True, check=True).stdout
    assert len(job_ids(out)) == 2 and not {*queue.split()} & {*job_ids(out)}


def test_detached_status_wait_and_cancel(train, start, tmp_path, job_ids):
    def sweep_command(*arguments: str) -> tuple[int, str]:
        process = start(*arguments, program=("-m", "yxanul.sweep"), base=(), cwd=tmp_path)
        out, err = process.communicate(timeout=120)
        return process.returncode, out + err

    began = time.monotonic()
    status, out, err = train(*LONG, "seed=1,2,3,4", *SLURM, "hydra.launcher.detach=true", "--multirun", cwd=tmp_path)
    assert (status, err) == (0, "") and time.monotonic() - began < 20
    ids = job_ids(out)
    assert len(ids) == 4
    sweep = str(sweep_in(tmp_path).relative_to(tmp_path))
    status, out = sweep_command("status", sweep)
    assert status == 0 and re.search(rf"seed=4 +pending +{ids[3]}", out), out
    subprocess.run(["scancel", ids[3]], check=True)
    status, out = sweep_command("wait", "--poll", "0.2", sweep)
    assert status == 1 and "4 runs: 3 finished, 1 failed" in out, out

    status, out, _ = train(*LONG, "seed=1,2,3,4", *SLURM, "hydra.launcher.detach=true", "--multirun", cwd=tmp_path)
    [again] = job_ids(out)
    status, out = sweep_command("cancel", sweep)
    assert (status, out) == (0, f"cancelled job {again}: seed=4\n")


def test_what_sbatch_refuses_is_one_line(train, tmp_path):
    status, _, err = train("seed=1,2", *SLURM, "hydra.launcher.partition=nowhere", "--multirun", cwd=tmp_path)
    assert status == 1
    assert re.fullmatch(r"error: hydra/launcher=slurm: sbatch refuses the job: [^\n]*nvalid partition[^\n]*\n", err), (
        err
    )


def test_an_error_of_the_second_rank_ends_its_run_alone(check_two_ranks):
    check_two_ranks(*SLURM[:2])


def test_a_run_that_reaches_its_time_limit_goes_on(limited, alone):
    process, folder = limited
    job = recorded_job(folder)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out
    assert recorded_job(folder) == job
    check_requeued(job.log(folder))
    check_same(folder, alone)
