"""The state of a run from what lies in its folder and what the scheduler says."""

import json
import os
import socket

import pytest

from yxanul.files import write_json
from yxanul.sweep import runs
from yxanul.sweep.runs import JobRecord
from yxanul.sweep.scheduler import look
from yxanul.sweep.states import State, run_state, sweep_states

JOB = JobRecord("slurm", "7", 2, "here")


@pytest.mark.parametrize(
    ("statuses", "seen", "state"),
    [
        ((None, None), "pending", State.pending),
        ((None, None), "running", State.running),
        ((None, None), "unknown", State.running),
        ((None, None), "gone", State.failed),  # killed without a word
        ((0, None), "gone", State.failed),
        ((0, None), "running", State.running),
        ((0, 0), "running", State.finished),
        ((0, 1), "running", State.failed),  # the other rank may wait for it for ever
        ((143, 143), "gone", State.stopped),
        ((143, 143), "pending", State.pending),  # preempted, and back in the queue
    ],
)
def test_a_job_is_what_its_ranks_and_the_scheduler_say(tmp_path, statuses, seen, state):
    for rank, status in enumerate(statuses):
        if status is not None:
            write_json(JOB.outcome(tmp_path, rank), {"status": status})
    assert run_state(tmp_path, "", JOB, seen).state is state


@pytest.mark.parametrize(
    ("status", "changes", "state"),
    [
        (None, {}, State.running),
        (None, {"pid": 2**22 + 1}, State.failed),  # there is no such process
        (None, {"started": 1}, State.failed),  # its number has gone to another
        (None, {"host": "elsewhere"}, State.running),  # for all that can be seen from here
        (0, {"pid": 1}, State.finished),
        (1, {"pid": 1}, State.failed),
        (130, {"pid": 1}, State.stopped),
    ],
)
def test_a_run_of_the_basic_launcher_is_what_its_outcome_says(tmp_path, status, changes, state):
    """As this process says of itself, with changes."""
    runs.record_outcome(tmp_path, status)
    write_json(tmp_path / runs.OUTCOME, runs.read_json(tmp_path / runs.OUTCOME) | changes)
    assert run_state(tmp_path, "", None, "gone").state is state


def test_a_result_is_the_end_of_all_doubt(tmp_path):
    write_json(tmp_path / runs.OUTCOME, {"status": 1, "pid": 1, "host": "there"})
    write_json(tmp_path / "result.json", {"steps": 9, "bits_per_byte": 1.5})
    run = run_state(tmp_path, "", None, "gone")
    assert (run.state, run.step, run.bits_per_byte) == (State.finished, 9, 1.5)


def test_the_log_is_that_of_the_rank_that_failed(tmp_path):
    for rank, status in enumerate((0, 1)):
        write_json(JOB.outcome(tmp_path, rank), {"status": status})
        JOB.log(tmp_path, rank).touch()
    assert run_state(tmp_path, "", JOB, "gone").log == JOB.log(tmp_path, 1)


def test_the_last_step_is_read_from_a_record_that_is_being_written(tmp_path):
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1.0}) for step in range(5000)]
    lines.insert(4990, json.dumps({"kind": "eval", "step": 4989, "bits_per_byte": 1.25}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "tra')
    write_json(tmp_path / "plan.json", {"steps": 6000})
    run = run_state(tmp_path, "", None, "gone")
    assert (run.step, run.steps, run.bits_per_byte) == (4999, 6000, 1.25)


def test_runs_that_nobody_started_are_pending_only_while_someone_starts_them(tmp_path):
    runs.record_runs(tmp_path, {"a": "seed=1"})
    assert [run.state for run in sweep_states(tmp_path)] == [State.missing]
    runs.record_launcher(tmp_path, os.getpid())
    assert [run.state for run in sweep_states(tmp_path)] == [State.pending]


def squeue(tmp_path, monkeypatch, script: str) -> str:
    """What is seen of job 7 where `squeue` is this shell script."""
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return look([(tmp_path, JOB)])["7"]


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        ("RUNNING", "running"),
        ("COMPLETING", "running"),
        ("PENDING", "pending"),
        ("TIMEOUT", "gone"),
        ("OTHER", "running"),
    ],
)
def test_slurm_is_asked_without_its_accounting(tmp_path, monkeypatch, state, seen):
    assert squeue(tmp_path, monkeypatch, f"echo '6|FAILED'; echo '7|{state}'") == seen


def test_a_job_that_slurm_has_forgotten_is_gone(tmp_path, monkeypatch):
    assert squeue(tmp_path, monkeypatch, "true") == "gone"


def test_a_slurm_that_does_not_answer_says_nothing(tmp_path, monkeypatch):
    assert squeue(tmp_path, monkeypatch, "exit 1") == "unknown"


def test_a_local_job_of_another_machine_is_unknown(tmp_path):
    assert look([(tmp_path, JobRecord("local", "1", 1, "another"))]) == {"1": "unknown"}


def test_another_process_with_the_number_of_a_job_is_not_the_job(tmp_path):
    assert look([(tmp_path, JobRecord("local", str(os.getpid()), 1, socket.gethostname()))]) == {
        str(os.getpid()): "gone"
    }
