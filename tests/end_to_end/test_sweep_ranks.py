"""Sweeps whose runs have several processes each, which submitit starts on this machine."""


def test_an_error_of_the_second_rank_ends_its_run_alone(check_two_ranks):
    check_two_ranks("hydra/launcher=submitit_local")
