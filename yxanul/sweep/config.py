"""What the launchers can be told: types and meanings here, values in conf/hydra/launcher/."""

from dataclasses import dataclass
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


def register() -> None:
    """Make the schemas known to Hydra; harmless when repeated."""
    schemas = {"submitit_local_schema": SubmititConfig, "slurm_schema": SlurmConfig}
    for name, schema in schemas.items():
        ConfigStore.instance().store(name, schema, group="hydra/launcher")
