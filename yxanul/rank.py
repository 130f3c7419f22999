"""Which of a run's processes this is: torchrun, submitit's tasks and srun say so in the environment.

No torch here: the command line asks before it imports anything slow.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

LAUNCHERS = (
    ("RANK", "LOCAL_RANK", ("WORLD_SIZE",)),  # torchrun
    ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID", ("SUBMITIT_LOCAL_NTASKS",)),
    ("SLURM_PROCID", "SLURM_LOCALID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")),  # srun, and submitit's tasks
)
"""Variables of rank, rank on the node and number of processes; of the last the first that is set."""


class Rank(NamedTuple):
    """The place of a process among those of a run.

    Attributes:
        rank: from 0.
        local_rank: among those on this node: the index of its GPU.
        size: how many processes there are.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1


def find_rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """The place that a launcher described in the environment; that of a single process where there was none."""
    for rank, local_rank, sizes in LAUNCHERS:
        size = next((int(environ[name]) for name in sizes if name in environ), 1)
        if size > 1 and rank in environ:
            return Rank(int(environ[rank]), int(environ.get(local_rank, 0)), size)
    return Rank()
