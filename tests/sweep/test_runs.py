"""Names, lists and records of sweeps."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from yxanul.errors import UserError
from yxanul.sweep import runs


def name(*overrides: str) -> str:
    return runs.sweep_name(OmegaConf.create({"hydra": {"overrides": {"task": list(overrides)}, "sweeper": {}}}))


def test_a_sweep_is_named_by_what_it_varies():
    assert name("tokenizer=t80k,t180k", "train.tokens=5", "seed=1,2").startswith("tokenizer-seed-")
    assert name("+optimizer.lr=choice(1,2)").startswith("optimizer.lr-")


def test_the_order_of_overrides_makes_no_other_sweep():
    digests = {name(*order).rpartition("-")[2] for order in (("a=1,2", "b=3"), ("b=3", "a=1,2"))}
    assert len(digests) == 1
    assert name("a=1,2", "b=3") != name("a=1,2", "b=4")


def test_a_long_name_still_fits_into_a_file_name():
    assert len(name(*(f"some.long.key.number{index}=1,2" for index in range(40)))) <= 120


def test_what_all_runs_have_does_not_vary():
    assert runs.varied([["a=1", "seed=1"], ["a=1", "seed=2"]]) == ["seed=1", "seed=2"]
    assert runs.varied([["a=1", "seed=1"]]) == ["a=1 seed=1"]


def test_the_list_of_runs_only_grows(tmp_path):
    runs.record_runs(tmp_path, {"a": "seed=1", "b": "seed=2"})
    runs.record_runs(tmp_path, {"b": "seed=2", "c": "seed=3"})
    assert runs.recorded_runs(tmp_path) == {"a": "seed=1", "b": "seed=2", "c": "seed=3"}


def test_a_damaged_list_is_one_line(tmp_path):
    (tmp_path / runs.SWEEP).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        runs.recorded_runs(tmp_path)


def test_the_launcher_is_known_while_it_lives(tmp_path):
    assert runs.launcher_of(tmp_path) is None
    runs.record_launcher(tmp_path, os.getpid())
    assert runs.launcher_of(tmp_path) == os.getpid()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        runs.record_launcher(tmp_path, other.pid)
        assert runs.launcher_of(tmp_path) == other.pid
        other.kill()
    assert runs.launcher_of(tmp_path) is None
