import pytest

from yxanul.rank import Rank, find_rank

SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, Rank(0, 0, 1)),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, Rank(3, 1, 4)),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, Rank(0, 0, 1)),
        (SLURM, Rank(5, 1, 8)),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Rank(0, 0, 1)),  # srun -n1 in a job of eight tasks
        (SLURM | {"RANK": "9", "LOCAL_RANK": "2", "WORLD_SIZE": "16"}, Rank(9, 2, 16)),  # torchrun, started by srun
        ({"SLURM_NTASKS": "8"}, Rank(0, 0, 1)),  # the shell of salloc
        (
            {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_NTASKS": "2"},
            Rank(1, 1, 2),
        ),
    ],
)
def test_the_launcher_is_recognized(environment, rank):
    assert find_rank(environment) == rank
