"""Submitting, watching and cancelling jobs: on this machine and on a SLURM cluster, without its accounting."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from submitit import LocalJob, SlurmExecutor
from submitit.core.utils import FailedJobError
from submitit.local.local import LocalExecutor

from yxanul.errors import UserError
from yxanul.sweep.job import CommandJob
from yxanul.sweep.runs import JOB, JobRecord

ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
"""States of SLURM in which a job will not run again."""

WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "RESV_DEL_HOLD"}


class _OwnSession(LocalExecutor):
    """submitit's local executor, but its jobs do not hear the terminal's Ctrl-C and hang-up.

    submitit hides all GPUs from a job that asks for none; here `gpus` (CUDA_VISIBLE_DEVICES) None changes nothing.
    """

    gpus: str | None = None

    def _submit_command(self, command: str) -> LocalJob:
        environment = {
            "SUBMITIT_LOCAL_NTASKS": self.parameters["tasks_per_node"],
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": 60 * self.parameters["timeout_min"],
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": self.parameters["signal_delay_s"],
            "SUBMITIT_LOCAL_NODEID": 0,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": 1,
            "SUBMITIT_STDERR_TO_STDOUT": 1,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
        }
        if self.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus
        process = subprocess.Popen(
            [sys.executable, "-m", "submitit.local._local", str(self.folder)],
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        tasks = list(range(self.parameters["tasks_per_node"]))
        return LocalJob(folder=self.folder, job_id=str(process.pid), tasks=tasks, process=process)


def submit_local(job: CommandJob, config: DictConfig, gpus: str | None) -> JobRecord:
    """Start a run in processes of its own on this machine.

    Args:
        gpus: the GPUs that it sees, as CUDA_VISIBLE_DEVICES; None leaves that as it is.
    """
    if config.nodes != 1:
        raise UserError(f"hydra.launcher.nodes={config.nodes}: this machine is one node; use hydra/launcher=slurm")
    executor = _OwnSession(job.folder / JOB, max_num_timeout=config.requeues)
    executor.update_parameters(
        timeout_min=config.time, tasks_per_node=config.tasks_per_node, signal_delay_s=config.signal_seconds
    )
    executor.gpus = gpus
    submitted = executor.submit(job)
    return JobRecord("local", submitted.job_id, config.tasks_per_node, socket.gethostname())


def submit_slurm(job: CommandJob, config: DictConfig) -> JobRecord:
    """Hand a run to SLURM.

    Raises:
        UserError: SLURM is not here, or refuses the job.
    """
    if not shutil.which("sbatch"):
        raise UserError("hydra/launcher=slurm: there is no sbatch here; start it where SLURM's commands are installed")
    executor = SlurmExecutor(job.folder / JOB, max_num_timeout=config.requeues)
    srun = ["--kill-on-bad-exit=1"]  # or the other ranks would wait for the dead one
    if config.cpus_per_task is not None:
        srun.append(f"--cpus-per-task={config.cpus_per_task}")  # srun does not take it from sbatch
    parameters = {
        "job_name": job.folder.name,
        "time": config.time,
        "nodes": config.nodes,
        "ntasks_per_node": config.tasks_per_node,
        "gpus_per_task": config.gpus_per_task or None,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "cpus_per_task": config.cpus_per_task,
        "mem": None if config.mem_gb is None else f"{round(config.mem_gb * 1024)}MB",
        "setup": list(config.setup) or None,
        "signal_delay_s": config.signal_seconds,
        "stderr_to_stdout": True,
        "srun_args": srun,
        "additional_parameters": {"requeue": True, **OmegaConf.to_container(config.extra, resolve=True)},
    }
    executor.parameters = {name: value for name, value in parameters.items() if value is not None}
    try:
        with redirect_stderr(StringIO()):  # submitit prints what sbatch says beside raising it
            submitted = executor.submit(job)
    except FailedJobError as error:
        words = " ".join(str(error).split())
        raise UserError(f"hydra/launcher=slurm: sbatch refuses the job: {words}") from error
    return JobRecord("slurm", submitted.job_id, config.nodes * config.tasks_per_node, socket.gethostname())


def look(jobs: Sequence[tuple[Path, JobRecord]]) -> dict[str, str]:
    """For each job, by its id: "running", "pending", "gone", or "unknown" where the scheduler does not answer.

    Args:
        jobs: each with the folder of its run.
    """
    found = {job.id: _look_local(folder, job) for folder, job in jobs if job.cluster == "local"}
    ids = [job.id for _, job in jobs if job.cluster == "slurm"]
    return found | (_look_slurm(ids) if ids else {})


def _look_local(folder: Path, job: JobRecord) -> str:
    if job.host != socket.gethostname():
        return "unknown"
    if not _controlled(folder, job):
        return "gone"
    try:
        children = Path(f"/proc/{job.id}/task/{job.id}/children").read_text().split()
    except OSError:
        return "gone"
    alive = sum(_alive(child) for child in children)
    ended = sum(job.outcome(folder, rank).exists() for rank in range(job.tasks))
    started = all(job.log(folder, rank).exists() for rank in range(job.tasks))
    return "gone" if started and alive + ended < job.tasks else "running"  # a rank died, and the others wait for it


def _controlled(folder: Path, job: JobRecord) -> bool:
    """Whether the process that looks after a local job's ranks is there, and is not another with its number."""
    try:
        words = Path(f"/proc/{job.id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"submitit.local._local" in words and str((folder / JOB).absolute()).encode() in words


def _alive(process: str) -> bool:
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def _look_slurm(ids: list[str]) -> dict[str, str]:
    command = ["squeue", "--noheader", "--states=all", "--me", "--format=%i|%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return dict.fromkeys(ids, "unknown")
    if done.returncode:
        return dict.fromkeys(ids, "unknown")
    states = dict(line.split("|") for line in done.stdout.splitlines())

    def word(state: str | None) -> str:
        if state is None or state in ENDED:
            return "gone"
        return "pending" if state in WAITING else "running"

    return {each: word(states.get(each)) for each in ids}


def cancel(folder: Path, job: JobRecord) -> None:
    """Ask a job to save and leave; SLURM kills it if it does not.

    Raises:
        UserError: the scheduler refuses, or the job runs on another machine.
    """
    if job.cluster == "slurm":
        done = subprocess.run(["scancel", job.id], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"scancel {job.id}: {' '.join(done.stderr.split())}")
    elif job.host != socket.gethostname():
        raise UserError(f"job {job.id} runs on {job.host}; cancel it there")
    elif _controlled(folder, job):
        os.kill(int(job.id), signal.SIGTERM)  # its controller hands it on to the run
