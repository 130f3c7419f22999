"""The runs of a sweep, by name: what was asked for, what became of it in this process, and where its jobs are.

A sweep is a folder with `sweep.json`, the list of its runs, and a folder for each run. Beside what any run
writes there is `outcome.json`, of a run in the launcher's own process, or `job/`, of one that was submitted.
"""

import hashlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from yxanul.errors import UserError
from yxanul.files import read_record, write_json

SWEEP, LAUNCHER, OUTCOME, JOB = "sweep.json", "launcher.json", "outcome.json", "job"


@dataclass(frozen=True)
class JobRecord:
    """A job that was submitted for a run.

    Attributes:
        cluster: "local" or "slurm".
        id: the scheduler's; of a local job its process.
        tasks: how many processes it has.
        host: the machine that it was submitted on.
    """

    cluster: str
    id: str
    tasks: int
    host: str

    def log(self, folder: Path, rank: int = 0) -> Path:
        """What a rank printed, of the run in `folder`."""
        return folder / JOB / f"{self.id}_{rank}_log.out"

    def outcome(self, folder: Path, rank: int) -> Path:
        """Where a rank says how it ended."""
        return folder / JOB / f"{self.id}_{rank}_outcome.json"


def sweep_name(root: DictConfig) -> str:
    """The name of a sweep: the keys that it varies and a hash of its overrides, whatever their order."""
    asked = OmegaConf.to_container(root.hydra.overrides.task, resolve=False)  # they may hold ${hydra:...}
    asked += [f"{key}={value}" for key, value in (OmegaConf.select(root, "hydra.sweeper.params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides(asked)
    keys = [override.key_or_group for override in parsed if override.is_sweep_override()]
    digest = hashlib.sha256(json.dumps(sorted(asked)).encode()).hexdigest()[:8]
    return "-".join([*(key.replace("/", ".") for key in keys), digest])[-120:]


def varied(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Of each run's overrides those that not all runs have, as one string."""
    common = set.intersection(*(set(each) for each in overrides)) if len(overrides) > 1 else set()
    return [" ".join(override for override in each if override not in common) for each in overrides]


def record_runs(sweep: Path, runs: dict[str, str]) -> None:
    """Put runs (their folder's name and what varies in them) on the sweep's list, beside what is there.

    Raises:
        UserError: the folder cannot be written.
    """
    there = recorded_runs(sweep) if (sweep / SWEEP).exists() else {}
    try:
        write_json(sweep / SWEEP, {"runs": there | runs})
    except OSError as error:
        raise UserError(f"{sweep}: cannot be written ({error.strerror}); choose another hydra.sweep.dir") from error


def recorded_runs(sweep: Path) -> dict[str, str]:
    """The list of a sweep's runs.

    Raises:
        UserError: the folder holds no sweep.
    """
    try:
        return read_record(sweep / SWEEP, "remove it and start the sweep's command again", ["runs"])["runs"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{sweep}: holds no sweep; name a folder below multirun_outputs/") from error


def record_launcher(sweep: Path, process: int) -> None:
    """Say which process starts the runs of a sweep."""
    write_json(sweep / LAUNCHER, _process(process))


def launcher_of(sweep: Path) -> int | None:
    """The process that is starting the runs of a sweep; None if there is none on this machine."""
    record = read_json(sweep / LAUNCHER)
    return record["pid"] if record and lives(record) else None


def _process(process: int) -> dict[str, Any]:
    """A process as records name it."""
    return {"pid": process, "host": socket.gethostname(), "started": _start_time(process)}


def lives(record: dict[str, Any]) -> bool:
    """Whether the process of a record is alive on this machine."""
    here = record["host"] == socket.gethostname() and record["started"] is not None
    return here and _start_time(record["pid"]) == record["started"]


def _start_time(process: int) -> int | None:
    """When a living process started, which tells it from a later one with its number."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def record_job(folder: Path, job: JobRecord) -> None:
    """Say which job was submitted for the run in `folder`."""
    write_json(folder / JOB / "job.json", asdict(job))


def recorded_job(folder: Path) -> JobRecord | None:
    """The last job that was submitted for the run in `folder`."""
    record = read_json(folder / JOB / "job.json")
    return JobRecord(**record) if record else None


def record_outcome(folder: Path, status: int | None) -> None:
    """Say that a run in this process has begun (None), or how it ended."""
    write_json(folder / OUTCOME, {"status": status, **_process(os.getpid())})


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a file that is there whole or not at all; raises UserError if it is damaged."""
    try:
        return read_record(path, "remove it and start the command again")
    except (FileNotFoundError, NotADirectoryError):
        return None
