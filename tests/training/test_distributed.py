"""Several processes train what one does, from the same plan, into one folder, and end together."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from yxanul.config import CurriculumConfig, OnSpike, ScheduleConfig, ScheduleKind, Stage, TrainConfig
from yxanul.curriculum import plan
from yxanul.errors import LostProcess, UserError
from yxanul.planning import make_plan
from yxanul.precision.linear import build_precision
from yxanul.tracking import read_rows
from yxanul.training.checkpoint import checkpoints
from yxanul.training.distributed import first_node, joined, meeting_point

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TRAIN = ("-m", "yxanul.train")
STEPS = 30
RUN = (
    f"train.steps={STEPS}",
    "curriculum.max_step_tokens=512",
    "hardware=cpu",
    "hardware.micro_batch.32=2",
    "hardware.micro_batch.64=2",
    "checkpoint.every=6",
    "checkpoint.keep=100",
)

DISTURBED = """
import itertools, os, runpy, signal, sys, time
from yxanul.training import distributed, loop
distributed.GUARD_SECONDS, distributed.SILENCE = 0.2, 20
calls, original, this = itertools.count(1), loop.add_gradient, int(os.environ["RANK"])

def add_gradient(*arguments):
    if next(calls) == 9:
        {disturbance}
    return original(*arguments)

loop.add_gradient = add_gradient
runpy.run_module("yxanul.train", run_name="__main__", alter_sys=True)
"""


class Job:
    """The processes of a run, started as srun would: by their environment alone."""

    def __init__(self, processes: list[subprocess.Popen]):
        self.processes = processes

    def wait(self, seconds: float = 60) -> list[tuple[int, str, str]]:
        """Status, stdout and stderr of each; processes that are still there after so long fail the test."""
        deadline = time.monotonic() + seconds
        try:
            outputs = [process.communicate(timeout=deadline - time.monotonic()) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(self.processes, outputs, strict=True)]


@pytest.fixture(scope="session")
def launch(tiny_run):
    """Starts a job: `launch(folder, size, *overrides)`; a folder for each process if there are several."""

    def start(folder, size: int, *overrides: str, program=TRAIN, launcher=()) -> Job:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        folders = folder if isinstance(folder, list) else [folder] * size
        processes = []
        for rank in range(1 if launcher else size):
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            command = [sys.executable, *launcher, *program, *tiny_run, *RUN, *overrides]
            process = subprocess.Popen(
                [*command, f"hydra.run.dir={folders[rank]}"],
                cwd=ROOT,
                env=os.environ
                | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0", "COLUMNS": "160"}
                | ({} if launcher else {name: str(value) for name, value in world.items()}),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            processes.append(process)
        return Job(processes)

    return start


@pytest.fixture
def disturbed(launch, tmp_path) -> Callable[..., Job]:
    """Starts two processes that do something at their ninth micro-batch; `this` is the process's rank."""

    def start(disturbance: str) -> Job:
        script = tmp_path / "disturbed.py"
        script.write_text(DISTURBED.format(disturbance=disturbance))
        return launch(tmp_path / "run", 2, program=(str(script),))

    return start


@pytest.fixture(scope="session")
def alone(launch, tmp_path_factory) -> Path:
    """The folder of a finished run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    [(status, _, err)] = launch(folder, 1).wait()
    assert (status, err) == (0, "")
    return folder


@pytest.fixture(scope="session", params=["ddp", "fsdp"])
def together(launch, tmp_path_factory, request) -> tuple[Path, list[str]]:
    """The folder of a run that two processes finished, and what each printed."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    results = launch(folder, 2, f"hardware.parallel={request.param}").wait()
    assert [(status, err) for status, _, err in results] == [(0, "")] * 2
    return folder, [out for _, out, _ in results]


def rows(folder: Path, kind: str = "train") -> list[dict]:
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == kind]


def check_same_learning(folder: Path, other: Path) -> None:
    """The same steps in the same order, and the same losses to rounding."""
    found, expected = rows(folder), rows(other)
    for name in ("step", "stage", "seq_len", "tokens", "bytes", "lr"):
        assert [row[name] for row in found] == [row[name] for row in expected], name
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    assert [row["grad_norm"] for row in found] == pytest.approx([row["grad_norm"] for row in expected], rel=1e-4)
    results = [json.loads((each / "result.json").read_text()) for each in (folder, other)]
    assert results[0]["bits_per_byte"] == pytest.approx(results[1]["bits_per_byte"], rel=1e-5)
    assert [results[0][name] for name in ("tokens", "bytes", "steps")] == [
        results[1][name] for name in ("tokens", "bytes", "steps")
    ]


def go_back(folder: Path, step: int, to: Path) -> Path:
    """A copy of a finished run as it was after `step`."""
    shutil.copytree(folder, to)
    (to / "result.json").unlink()
    for path in checkpoints(to / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    assert checkpoints(to / "checkpoints")[-1].name == f"step-{step:08d}"
    return to


# The same mathematics


def test_two_processes_learn_what_one_does(alone, together):
    folder = together[0]
    check_same_learning(folder, alone)
    losses = [row["loss"] for row in rows(alone)]
    assert losses[-1] < losses[0] - 0.3
    assert len({row["seq_len"] for row in rows(alone)}) == 3
    one, two = ([stage["micro_batches"] for stage in plan_of(each)["stages"]] for each in (alone, folder))
    assert [-(-count // 2) for count in one] == two and max(two) > 1
    assert plan_of(folder)["device"].startswith("2 x ")


def plan_of(folder: Path) -> dict:
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_goes_on_with_two_processes_and_with_one_again(alone, launch, tmp_path, parallel):
    first = go_back(alone, 6, tmp_path / "first")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    [(status, out, err)] = launch(first, 2, f"hardware.parallel={parallel}", launcher=torchrun).wait()
    assert status == 0 and out.count("at step 6") == 1, err
    check_same_learning(first, alone)
    second = go_back(first, 12, tmp_path / "second")
    [(status, out, err)] = launch(second, 1).wait()
    assert (status, err) == (0, "") and "at step 12" in out
    check_same_learning(second, alone)


# One that writes and speaks


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_first_process_alone_speaks_and_every_one_writes_its_share(alone, together):
    folder, (out, other_out) = together
    assert "step 30/30" in out and "written:" in out and other_out == ""
    shares = {name for name in files(folder) if name.endswith(("-00001.safetensors", "-00002.safetensors"))}
    assert len(shares) == 2 * 2 * STEPS // 6
    assert files(folder) - shares == {name for name in files(alone) if not name.endswith(".safetensors")}
    last = checkpoints(folder / "checkpoints")[-1]
    sizes = [path.stat().st_size for path in last.glob("*.safetensors")]
    assert min(sizes) > 0.3 * max(sizes)


# Ending together


def test_a_signal_to_one_process_stops_all_at_one_step(launch, tmp_path):
    folder = tmp_path / "run"
    job = launch(folder, 2, "train.steps=5000", "checkpoint.every=100000")
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() or len(rows(folder)) < 5:
        assert time.monotonic() < deadline and all(process.poll() is None for process in job.processes)
        time.sleep(0.05)
    job.processes[1].send_signal(signal.SIGTERM)
    results = job.wait(20)
    assert [(status, err) for status, _, err in results] == [(128 + signal.SIGTERM, "")] * 2
    [saved] = checkpoints(folder / "checkpoints")
    step = rows(folder)[-1]["step"]
    assert saved.name == f"step-{step:08d}"
    assert f"stopped by SIGTERM at step {step} of 5000" in results[0][1] and results[1][1] == ""


def test_a_process_that_fails_ends_the_job_and_is_heard(disturbed):
    job = disturbed("if this == 1: raise ZeroDivisionError('of the second alone')")
    began = time.monotonic()
    (first, second) = job.wait(40)
    assert time.monotonic() - began < 30
    assert second[0] == 1 and "ZeroDivisionError: of the second alone" in second[2]
    assert (first[0], first[2].count("\n")) == (LostProcess.status, 1)
    assert first[2].startswith("error: process 0 of 2: another process of this run has died")


def test_a_process_that_is_killed_ends_the_others(disturbed):
    (first, second) = disturbed("if this == 1: os.kill(os.getpid(), signal.SIGKILL)").wait(40)
    assert second[0] == -signal.SIGKILL
    assert first[0] == LostProcess.status and "another process of this run has died" in first[2]


def test_a_process_that_waits_for_a_failed_one_leaves_too(disturbed):
    """As a process does that waits for a GPU on an answer that never comes."""
    (first, second) = disturbed("time.sleep(600) if this == 0 else sys.exit('gone')").wait(40)
    assert second[0] == 1 and "gone" in second[2]
    assert first[0] == LostProcess.status and "another process of this run has died" in first[2]


@pytest.mark.parametrize("still", [0, 1])
def test_a_process_that_stands_still_is_not_waited_for(disturbed, still):
    """As on a node that freezes or whose cable is cut, so that no connection breaks."""
    job = disturbed(f"if this == {still}: os.kill(os.getpid(), signal.SIGSTOP)")
    other = 1 - still
    _, err = job.processes[other].communicate(timeout=40)
    job.processes[still].kill()
    assert job.processes[other].returncode == LostProcess.status
    assert f"process {other} of 2: process {still} has given no sign of life for 4 s" in err and err.count("\n") == 1


def test_an_error_that_the_first_finds_is_said_once(alone, launch, tmp_path):
    folders = [shutil.copytree(alone, tmp_path / "run"), tmp_path / "of_the_second"]
    (first, second) = launch(folders, 2, "seed=7").wait()
    assert (first[0], second[0]) == (1, LostProcess.status)
    assert first[2].startswith("error: seed=7: ") and first[2].count("\n") == 1 and second[2] == ""
    assert list(folders[1].iterdir()) == []


def test_processes_that_cannot_meet_say_so(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(UserError, match=rf"process 0 of 2 cannot meet the others at 127\.0\.0\.1:{port}") as error:
            joined(CPU).__enter__()
    assert "\n" not in str(error.value)


# What cannot be shared


def stages(*step_tokens: int) -> tuple[Stage, ...]:
    return tuple(Stage(8, tokens, 1 / len(step_tokens), 1.0, 1.0) for tokens in step_tokens)


@pytest.mark.parametrize(
    ("curriculum", "size", "expected"),
    [
        ((stages(32, 80), None), 4, "curriculum.stages.1.step_tokens=80: a step of stage 2 .* 64 or 96 would do"),
        ((stages(16, 64), None), 4, "curriculum.stages.0.step_tokens=16: a step of stage 1 .*; 32 would do"),
        ((stages(96, 64), 24), 2, "curriculum.max_step_tokens=24: .* has 3 sequences .*; 16 or 32 would do"),
    ],
)
def test_a_step_that_cannot_be_shared_is_refused_with_the_nearest_that_can(curriculum, size, expected):
    schedule = ScheduleConfig(ScheduleKind.linear, warmup=0.0, decay=0.0, floor=0.0)
    train = TrainConfig(tokens=960, steps=None, max_bad_steps=1, on_spike=OnSpike.warn)
    with pytest.raises(ValueError, match=expected) as error:
        plan(CurriculumConfig(*curriculum, None), train, schedule, 1.0, lambda seq_len: 4, size)
    assert "\n" not in str(error.value) and f"which {size} processes cannot share" in str(error.value)
    for tokens in map(int, re.findall(r"\d+", str(error.value).partition("evenly; ")[2])):
        assert tokens % (8 * size) == 0


def test_devices_divide_the_time_and_add_up_their_peaks(compose, tiny_run):
    config = compose(*tiny_run, "hardware.peak_tflops.fp32=0.1")
    precision = build_precision(config.precision, CPU)
    one, two = (make_plan(config, CPU, precision, size) for size in (1, 2))
    assert two.peak_flops == 2 * one.peak_flops
    assert [stage.seconds for stage in two.stages] == pytest.approx([stage.seconds / 2 for stage in one.stages])
    assert [(s.tokens, s.peak_lr, s.sequences) for s in two.stages] == [
        (s.tokens, s.peak_lr, s.sequences) for s in one.stages
    ]
    with pytest.raises(UserError, match="3 processes cannot share"):
        make_plan(config, CPU, precision, 3)


def test_a_launcher_that_was_forgotten_is_noticed(run, tmp_path):
    with pytest.raises(UserError, match=r"hardware.gpus_per_node=4: .* asks for 8 processes, and there are 1"):
        run(tmp_path / "run", "hardware.nodes=2", "hardware.gpus_per_node=4")


# Where they meet

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
}


def test_the_meeting_point_is_as_set_or_the_jobs_own():
    assert meeting_point({"MASTER_ADDR": "here", "MASTER_PORT": "123"} | SLURM) == ("here", 123)
    address, port = meeting_point(SLURM)
    assert address == "gpu07" and 20_000 <= port <= 60_000
    assert meeting_point(SLURM | {"SLURM_PROCID": "0"}) == (address, port)
    assert len({meeting_point(SLURM | {"SLURM_JOB_ID": str(job)})[1] for job in range(20)}) > 15
    assert meeting_point({"SUBMITIT_LOCAL_JOB_ID": "12"} | SLURM)[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[07-09,12],login", "gpu07"),
        ("gpu[3,5]", "gpu3"),
        ("a[01-02]-b[3-4],c", "a01-b3"),
        ("gpu-01.cluster.org,x", "gpu-01.cluster.org"),
        ("", ""),
    ],
)
def test_the_first_node_of_slurms_list(nodes, first):
    assert first_node(nodes) == first
