"""What the launchers and the sweeper of searches can be told: types and meanings here, values in conf/hydra/."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Dict, List, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class SubmititConfig:
    """A process, or several, for each run: `hydra/launcher=submitit_local`.

    Attributes:
        time: minutes after which a run is stopped, and started again while `requeues` last.
        nodes: machines for each run.
        tasks_per_node: processes on each of them.
        gpus_per_task: GPUs for each process; null leaves the matter to the environment.
        requeues: how often a run that reached its time limit is started again, from its last checkpoint.
        signal_seconds: how long before the time limit the run is asked to save and leave.
        poll_seconds: how often the launcher looks at its jobs.
        parallel: runs at the same time; null starts all of them at once.
        detach: return as soon as the runs are on their way; `python -m yxanul.sweep` looks after them.
    """

    _target_: str = MISSING
    time: int = MISSING
    nodes: int = MISSING
    tasks_per_node: int = MISSING
    gpus_per_task: Optional[int] = MISSING
    requeues: int = MISSING
    signal_seconds: int = MISSING
    poll_seconds: float = MISSING
    parallel: Optional[int] = MISSING
    detach: bool = MISSING


@dataclass
class SlurmConfig(SubmititConfig):
    """A SLURM job for each run: `hydra/launcher=slurm`.

    Attributes:
        partition: which one; null is the cluster's default, as for the next three.
        account: who pays.
        qos: quality of service.
        constraint: features that a node must have, e.g. "h100".
        cpus_per_task: for each process.
        mem_gb: memory for each node.
        setup: shell lines before the run, e.g. "module load cuda".
        extra: any other parameter of sbatch, e.g. {mail-user: me@example.org}.
    """

    partition: Optional[str] = MISSING
    account: Optional[str] = MISSING
    qos: Optional[str] = MISSING
    constraint: Optional[str] = MISSING
    cpus_per_task: Optional[int] = MISSING
    mem_gb: Optional[float] = MISSING
    setup: List[str] = MISSING
    extra: Dict[str, Any] = MISSING


class Direction(Enum):
    """What a search wants of its score."""

    minimize = "minimize"
    maximize = "maximize"


@dataclass
class StudyConfig:
    """A search by optuna for the values with the fewest bits per byte: `hydra/sweeper=optuna`.

    Attributes:
        sampler: a sampler of optuna; with a seed the same command makes the same trials.
        direction: of the bits per byte.
        n_trials: how many trials are made in all.
        n_jobs: trials that are asked for together, so that the launcher may make them at the same time.
        max_failure_rate: the share of n_trials that may fail before the search ends with an error.
        params: what is searched, as overrides: {optimizer.lr: "tag(log, interval(1e-4, 1e-2))"}.
    """

    _target_: str = MISSING
    _recursive_: bool = MISSING
    sampler: Dict[str, Any] = MISSING
    direction: Direction = MISSING
    n_trials: int = MISSING
    n_jobs: int = MISSING
    max_failure_rate: float = MISSING
    params: Dict[str, Any] = MISSING


SCHEMAS = {
    ("hydra/launcher", "submitit_local_schema"): SubmititConfig,
    ("hydra/launcher", "slurm_schema"): SlurmConfig,
    ("hydra/sweeper", "optuna_schema"): StudyConfig,
}


def register() -> None:
    """Make the schemas known to Hydra; harmless when repeated."""
    for (group, name), schema in SCHEMAS.items():
        ConfigStore.instance().store(name, schema, group=group)
