"""Searches in real processes: the best is the run with the fewest bits per byte, and no run is made twice."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from yxanul.files import write_json
from yxanul.sweep.states import State, sweep_states

LOCAL = ("hydra/launcher=submitit_local", "hydra.launcher.parallel=2", "hydra.launcher.poll_seconds=0.2")
SEARCH = ("hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(1e-4, 1e-1))", "train.tokens=2000")


@pytest.fixture(autouse=True)
def _optuna():
    pytest.importorskip("optuna", reason="needs optuna: pip install 'yxanul[optuna]'")


def sweep_in(working: Path) -> Path:
    [sweep] = (working / "multirun_outputs").iterdir()
    return sweep


def results(sweep: Path) -> dict[Path, tuple[int, float]]:
    """When each run finished, and its bits per byte."""
    paths = sweep.glob("*/result.json")
    return {path: (path.stat().st_mtime_ns, json.loads(path.read_text())["bits_per_byte"]) for path in paths}


@pytest.mark.parametrize("launcher", [pytest.param((), marks=pytest.mark.slow), LOCAL], ids=["basic", "submitit_local"])
def test_a_search_ends_with_the_best_of_its_trials_and_goes_on_after_one_that_fails(train, tmp_path, launcher):
    search = (*SEARCH, *launcher, "model.num_heads=2,3", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=3")
    status, out, err = train(*search, "--multirun", cwd=tmp_path)
    assert status == 0, out + err
    sweep = sweep_in(tmp_path)
    assert re.fullmatch(r"optimizer\.lr-model\.num_heads-[0-9a-f]{8}", sweep.name)
    runs = sweep_states(sweep)
    assert {run.state for run in runs} == {State.finished, State.failed} and len(runs) == 3
    assert all((run.state is State.failed) == ("model.num_heads=3" in run.varies) for run in runs)
    assert len(re.findall(r"^optimizer\.lr=\S+ model\.num_heads=\d +f", out, re.MULTILINE)) == 3  # one table

    finished = results(sweep)
    best = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(score for _, score in finished.values())
    [folder] = [path.parent for path, (_, score) in finished.items() if score == best["best_value"]]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert best["best_params"] == {"optimizer.lr": config["optimizer"]["lr"], "model.num_heads": "2"}
    assert f"best of 3: optimizer.lr={config['optimizer']['lr']} model.num_heads=2: " in out

    assert train(*search, "hydra.sweeper.n_trials=4", "--multirun", cwd=tmp_path)[0] == 0
    later = results(sweep_in(tmp_path))
    assert finished.items() <= later.items() and len(sweep_states(sweep)) == 4


def test_a_search_whose_trials_fail_ends_early(train, tmp_path):
    status, out, err = train(*SEARCH, "model.num_heads=3", "hydra.sweeper.n_trials=8", "--multirun", cwd=tmp_path)
    assert status == 1
    assert "5 runs: 5 failed" in out  # more than half of eight
    assert re.fullmatch(r"(error: model\.num_heads=3: [^\n]*\n){5}error: 5 of 8 trials failed, [^\n]*\n", err), err
    assert not (sweep_in(tmp_path) / "optimization_results.yaml").exists()


@pytest.mark.slow
def test_a_detached_search_goes_on_in_the_background(train, start, tmp_path):
    search = (*SEARCH, *LOCAL, "hydra.sweeper.n_trials=2", "hydra.launcher.detach=true")
    status, out, err = train(*search, "--multirun", cwd=tmp_path)
    assert (status, err) == (0, "") and "from the background" in out
    sweep = sweep_in(tmp_path)
    arguments = ("wait", "--poll", "0.2", str(sweep))
    process = start(*arguments, program=("-m", "yxanul.sweep"), base=(), cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "2 runs: 2 finished" in out, out + err
    assert "best of 2: optimizer.lr=" in (sweep / "sweep.log").read_text()


def test_what_is_suggested_twice_is_run_once(command, monkeypatch, tmp_path):
    made = []

    def train_run(config, folder, console, began):
        made.append(config.seed)
        write_json(folder / "result.json", {"steps": 1, "bits_per_byte": 3.0 - config.seed})
        return 0

    monkeypatch.setattr("yxanul.training.run.train_run", train_run)
    search = ("hydra/sweeper=optuna", "seed=1,2", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=4")
    status, out, _ = command(*search, "--multirun")
    assert status == 0 and len(re.findall(r"^trial \d of 4: [12]\.0000 bits per byte", out, re.MULTILINE)) == 4
    assert sorted(made) == [1, 2]
    assert "2 runs: 2 finished" in out and "best of 4: seed=2: 1.0000 bits per byte" in out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("optimizer.lr=0.1",), "hydra/sweeper=optuna: there is nothing to search"),
        (("hydra.sweeper.n_jobs=0",), "hydra.sweeper.n_jobs=0: must be at least 1"),
        (("seed=interval(5, 1)",), "seed=interval(5, 1): "),
        (("hydra.sweeper.trials=1",), "hydra.sweeper.trials: no such key"),
        (("hydra.sweeper.sampler.sead=1",), "hydra.sweeper.sampler.sead: no such key"),
        (("optimizer.lrr=interval(5, 7)",), "optimizer.lrr: no such key; did you mean optimizer.lr?"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(command, overrides, said):
    status, _, err = command(*SEARCH, *overrides, "--multirun")
    assert status == 1 and err.startswith(f"error: {said}") and err.count("\n") == 1, err


def test_without_optuna_it_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, err = command(*SEARCH, "--multirun")
    assert status == 1 and re.fullmatch(r"error: hydra/sweeper=optuna: [^\n]*'yxanul\[optuna\]'\n", err), err
