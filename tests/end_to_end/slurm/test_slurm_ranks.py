"""Runs of several processes each, as jobs of a real SLURM."""

import pytest


@pytest.mark.usefixtures("cluster")
def test_an_error_of_the_second_rank_ends_its_run_alone(check_two_ranks):
    check_two_ranks("hydra/launcher=slurm", "hydra.launcher.gpus_per_task=null")
