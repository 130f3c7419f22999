"""Sweeps on a real SLURM of one node without accounting."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from yxanul.sweep.runs import recorded_job
from yxanul.sweep.states import State, sweep_states
from yxanul.tracking import read_rows

pytestmark = pytest.mark.usefixtures("cluster")

SLURM = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_task=null", "hydra.launcher.poll_seconds=0.2")
LONG = ("train.tokens=40000",)


def sweep_in(working: Path) -> Path:
    [sweep] = (working / "multirun_outputs").iterdir()
    return sweep


def states(sweep: Path) -> dict[str, State]:
    return {run.varies: run.state for run in sweep_states(sweep)}


def folder_of(working: Path, seed: int) -> Path:
    [folder] = sweep_in(working).glob(f"*seed{seed}*")
    return folder


def trained(working: Path, seed: int) -> int:
    for path in working.glob(f"multirun_outputs/*/*seed{seed}*/metrics.jsonl"):
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
        assert (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes()


def test_a_sweep_runs_once(train, tmp_path, job_ids):
    grid = ("seed=1,2", "schedule=cosine,linear", *SLURM)
    status, out, err = train(*grid, "--multirun", cwd=tmp_path)
    assert (status, err) == (0, ""), out
    assert "4 runs: 4 finished" in out and len(set(job_ids(out))) == 4
    for run in sweep_states(sweep_in(tmp_path)):
        assert re.search(rf"{re.escape(run.varies)} +finished +23 of 23 +\d\.\d{{4}} +{run.job.id}\b", out)
        assert run.log == run.folder / "job" / f"{run.job.id}_0_log.out"
        assert "finished" in run.log.read_text()
    status, out, err = train(*grid, "--multirun", cwd=tmp_path)
    assert (status, err, job_ids(out)) == (0, "", [])


def test_failed_and_killed_runs_stop_no_other(start, train, wait_for, tmp_path):
    sweep = (*LONG, "seed=1,2", "model.num_heads=2,3", *SLURM)
    process = start(*sweep, "--multirun", cwd=tmp_path)
    wait_for(lambda: trained(tmp_path, 1) > 20, process)
    victim = next(
        run for run in sweep_states(sweep_in(tmp_path)) if run.varies.split() == ["model.num_heads=2", "seed=1"]
    )
    [rank] = ranks(victim.job.id)
    subprocess.run(["kill", "-KILL", str(rank)], check=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("error: 3 of 4 runs did not finish") and err.count("\n") == 1
    assert states(sweep_in(tmp_path)) == {
        "model.num_heads=2 seed=1": State.failed,
        "model.num_heads=2 seed=2": State.finished,
        "model.num_heads=3 seed=1": State.failed,
        "model.num_heads=3 seed=2": State.failed,
    }
    assert "must divide model.hidden_size=64" in out
    assert re.search(r"^model.num_heads=2 seed=1: failed at step \d+: ", out, re.MULTILINE)


def test_a_preempted_run_is_requeued_and_ends_as_if_left_alone(start, train, wait_for, tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "requeued").mkdir()
    process = start(*LONG, "seed=1", *SLURM, "hydra.launcher.time=30", "--multirun", cwd=tmp_path / "requeued")
    wait_for(lambda: trained(tmp_path / "requeued", 1) > 20, process)
    folder = folder_of(tmp_path / "requeued", 1)
    job = recorded_job(folder)
    subprocess.run(["scancel", "--signal=USR2", job.id], check=True)
    assert train(*LONG, "seed=1", "--multirun", cwd=tmp_path / "alone")[0] == 0
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out
    assert recorded_job(folder) == job
    log = job.log(folder).read_text()
    assert "stopped by SIGUSR2 at step" in log and "resuming from" in log
    check_same(folder, folder_of(tmp_path / "alone", 1))


@pytest.mark.slow
def test_a_run_that_reaches_its_time_limit_goes_on(train, tmp_path):
    """A real limit of a minute, of which SLURM takes some seconds off when it signals."""
    longer = ("train.tokens=600000", "checkpoint.every=100", "evaluate.every=1000", "seed=1")
    limit = ("hydra.launcher.time=1", "hydra.launcher.signal_seconds=5", "hydra.launcher.requeues=9")
    (tmp_path / "alone").mkdir()
    (tmp_path / "limited").mkdir()
    status, out, err = train(*longer, *SLURM, *limit, "--multirun", cwd=tmp_path / "limited", timeout=500)
    assert (status, err) == (0, ""), out
    folder = folder_of(tmp_path / "limited", 1)
    assert "resuming from" in recorded_job(folder).log(folder).read_text()
    assert train(*longer, "--multirun", cwd=tmp_path / "alone", timeout=300)[0] == 0
    check_same(folder, folder_of(tmp_path / "alone", 1))


def test_a_job_that_is_cancelled_from_outside_is_not_waited_for(start, train, wait_for, tmp_path):
    process = start(*LONG, "seed=1", *SLURM, "--multirun", cwd=tmp_path)
    wait_for(lambda: trained(tmp_path, 1) > 10, process)
    subprocess.run(["scancel", recorded_job(folder_of(tmp_path, 1)).id], check=True)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "1 runs: 1 stopped" in out or "1 runs: 1 failed" in out
    status, out, err = train(*LONG, "seed=1", *SLURM, "--multirun", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "1 finished" in out


def test_an_interrupt_cancels_the_jobs(start, wait_for, tmp_path):
    process = start(*LONG, "seed=1,2", *SLURM, "--multirun", cwd=tmp_path)
    wait_for(lambda: all(trained(tmp_path, seed) > 3 for seed in (1, 2)), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "2 runs: 2 stopped" in out or "failed" in out
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
    assert queue == ""


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
