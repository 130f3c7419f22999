"""The command line: whatever a user gets wrong is one line that says what and how to mend it."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from yxanul import cli
from yxanul.composition import known_keys
from yxanul.config import Config
from yxanul.errors import UserError
from yxanul.plan import plan
from yxanul.train import train

ROOT = Path(__file__).resolve().parents[1]
TASKS = {"plan": plan, "train": train}
STAGE = "seq_len:8,step_tokens:64,share:1,lr_scale:1,grad_clip:1"


@dataclass
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs a command in this process as `python -m yxanul.<program> *overrides` in an empty folder would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that what `cli.run` sets is undone

    def run(program: str, *overrides: str, task=None) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"yxanul.{program}", *overrides])
        status = cli.run(task or TASKS[program], program)
        out, err = capfd.readouterr()
        return Outcome(status, out, err)

    return run


def in_a_process(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "0", "COLUMNS": "140", **environment}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=variables, capture_output=True, text=True, timeout=120
    )


WRONG = {
    # what is typed: what the line must say
    ("model.hiden_size=8",): ["model.hiden_size", "did you mean model.hidden_size?"],
    ("trane.tokens=8",): ["trane.tokens", "did you mean train.tokens?"],
    ("lr=8",): ["lr", "did you mean optimizer.lr?"],
    ("optimizer=muon", "optimizer.muon.lrr=1"): ["optimizer.muon.lrr", "did you mean optimizer.muon.lr?"],
    ("curriculum.stages.3.seq_lenn=8",): ["did you mean curriculum.stages.3.seq_len?"],
    ("curriculum.stages=[{seq_lenn:8}]",): ["seq_lenn", "did you mean curriculum.stages.seq_len?"],
    ("model={hidden_sise:8}",): ["model.hidden_sise", "did you mean model.hidden_size?"],
    ("+model.foo=8",): ["model.foo=8", "hidden_size"],
    ("+foo=8",): ["foo=8", "model", "seed"],
    ("modl=nano",): ["modl", "did you mean model?"],
    ("model=nanoo",): ["model=nanoo", "did you mean nano?", "yxanul_197m"],
    ("hardware=H100",): ["hardware=H100", "did you mean h100?"],
    ("experiment=foo",): ["experiment=foo", "quickstart", "research"],
    ("experiment=[research,foo]",): ["experiment=foo", "quickstart"],
    ("--config-name=trian",): ["trian", "did you mean train?"],
    ("model=null",): ["model=null"],
    ("~model",): ["model", "Missing"],
    ("seed",): ["seed", "key=value"],
    ("data.path=a(b",): ["data.path=a(b", "quotes"],
    ("model.hidden_size=big",): ["model.hidden_size", "'big'", "Integer"],
    ("model.hidden_size=null",): ["model.hidden_size", "not Optional"],
    ("train.tokens=1e9",): ["train.tokens", "1000000000.0", "Integer"],
    ("optimizer.betas=[0.9,x]",): ["optimizer.betas.1", "'x'"],
    ("tracking.tensorboard=perhaps",): ["tracking.tensorboard", "'perhaps'", "bool"],
    ("curriculum.stages=8",): ["curriculum.stages", "list"],
    ("curriculum.stages=[{seq_len:a}]",): ["curriculum.stages.seq_len", "'a'"],
    ("curriculum.stages=[{seq_len:8}]",): ["curriculum.stages.0.step_tokens", "Missing"],
    ("curriculum.stages.99.share=0.5",): ["curriculum.stages.99", "no such entry"],
    ("optimizer.muon.lr=0.1",): ["optimizer.muon.lr=0.1", "optimizer=muon"],
    ("data.path=${oc.env:NO_SUCH_VARIABLE}",): ["data.path", "NO_SUCH_VARIABLE"],
    ("model.norm=batchnorm",): ["model.norm", "'batchnorm'", "rmsnorm, layernorm"],
    ("tracking.wandb.mode=on",): ["tracking.wandb.mode", "'on'", "online"],
    ("model=yxanul_197m", "model.num_heads=5"): ["model.num_heads=5", "model.hidden_size=768", "4 or 6"],
    ("curriculum=ultra", "model.max_seq_len=512"): ["seq_len=768", "curriculum.max_seq_len=512"],
    ("curriculum.stages.0.share=0.9",): ["curriculum.stages", "1.8965", "add up to 1"],
    (f"curriculum.stages=[{{{STAGE.replace('share:1', 'share:0.4')}}}]",): ["0.4", "the last share 1"],
    ("hardware=cpu", "hardware.micro_batch.2048=0"): ["hardware.micro_batch.2048=0", "at least 1"],
    ("hardware=cpu", "hardware.micro_batch.2049=1"): ["+hardware.micro_batch.2049="],
    ("curriculum=ultra", "curriculum.max_step_tokens=100"): ["curriculum.max_step_tokens=100", "2048"],
    ("train.tokens=-5",): ["train.tokens=-5", "greater than 0"],
    ("train.tokens=5",): ["train.tokens=5", "one optimizer step"],
    ("optimizer.lr=nan",): ["optimizer.lr=nan", "greater than 0"],
    ("seed=-1",): ["seed=-1", "negative"],
    ("data=parquet",): ["data.path", "data.path=DIR"],
    ("model=nano,yxanul_197m",): ["model=nano,yxanul_197m", "--multirun"],
    ("hydra.run.dir=/dev/null/run",): ["hydra.run.dir=/dev/null/run", "directory"],
}


@pytest.mark.parametrize(("overrides", "said"), WRONG.items(), ids=lambda part: " ".join(part)[:60])
def test_a_mistake_is_one_line(command, tmp_path, overrides, said):
    outcome = command("plan", *overrides)
    assert outcome.status == 1
    assert re.fullmatch(r"error: \S[^\n]*\n", outcome.err), outcome.err
    assert [part for part in said if part not in outcome.err] == [], outcome.err
    assert outcome.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "overrides",
    [("model.num_heads=5",), ("data=parquet",), ("+model.foo=8",), ("model.hidden_size=big",), ("seed=${nowhere}",)],
)
def test_training_leaves_no_folder_for_a_run_that_cannot_work(command, tmp_path, overrides):
    outcome = command("train", *overrides)
    assert outcome.status == 1
    assert re.fullmatch(r"error: \S[^\n]*\n", outcome.err), outcome.err
    assert list(tmp_path.iterdir()) == []


KEYS = [key for key in known_keys() if key.count(".") == 1 and key not in ("hardware.micro_batch", "data.part")]
"""Any length may be a key of the first, and the second without its middle is as near to data.path."""


@pytest.mark.parametrize("key", KEYS[::8])
def test_a_key_with_a_letter_missing_is_recognized(command, key):
    group, leaf = key.split(".")
    misspelt = f"{group}.{leaf[: len(leaf) // 2]}{leaf[len(leaf) // 2 + 1 :]}"
    assert f"error: {misspelt}: no such key; did you mean {key}?\n" == command("plan", f"{misspelt}=1").err


def test_a_mistake_that_resembles_nothing_gets_no_suggestion(command):
    assert command("plan", "zzzz=1").err == "error: zzzz: no such key\n"


# --- tasks


def test_the_task_gets_the_composed_configuration(command):
    seen = []
    outcome = command("plan", "experiment=quickstart", "seed=7", task=lambda config: seen.append(config) or 0)
    assert outcome == Outcome(0, "", "")
    assert isinstance(seen[0], Config) and seen[0].seed == 7


@pytest.mark.parametrize("status", [0, 1, 143])
def test_the_status_is_the_tasks(command, status):
    assert command("plan", task=lambda config: status).status == status


def test_a_users_error_in_the_task_is_one_line(command):
    def fail(config):
        raise UserError("a/file.parquet: is\n  damaged")

    assert command("plan", task=fail) == Outcome(1, "", "error: a/file.parquet: is damaged\n")


@pytest.mark.parametrize("bug", [RuntimeError("shapes"), AssertionError("planned"), AttributeError("x"), OSError(5)])
def test_a_bug_keeps_its_traceback(command, bug):
    def fail(config):
        raise bug

    with pytest.raises(type(bug)) as caught:
        command("plan", task=fail)
    assert caught.value is bug
    assert any(frame.name == "fail" for frame in caught.traceback)


def test_the_task_is_never_given_what_cannot_work(command):
    assert command("plan", "model.num_heads=5", task=lambda config: pytest.fail("ran")).status == 1


def test_after_a_mistake_the_next_command_works(command):
    assert command("plan", "model=nanoo").status == 1
    assert command("plan", task=lambda config: 0).status == 0


def test_a_job_that_fails_does_not_stop_its_sweep(command, tmp_path):
    seeds = []

    def task(config):
        seeds.append(config.seed)
        if config.seed == 2:
            raise UserError("no seed 2")
        return 0

    sweep = command("plan", "--multirun", "seed=1,2,3", "hydra.sweep.dir=sweep", task=task)
    assert seeds == [1, 2, 3]
    assert (sweep.status, sweep.err) == (1, "error: no seed 2\n")


def test_a_job_that_cannot_work_does_not_stop_its_sweep(command):
    seen = []
    overrides = ("--multirun", "model=yxanul_197m", "model.num_heads=12,5,6", "hydra.sweep.dir=sweep")
    sweep = command("train", *overrides, task=lambda config: seen.append(config.model.num_heads) or 0)
    assert seen == [12, 6]
    assert sweep.status == 1 and sweep.err.startswith("error: model.num_heads=5: ") and sweep.err.count("\n") == 1


# --- HYDRA_FULL_ERROR


@pytest.mark.parametrize(
    ("overrides", "error"),
    [(("model=nanoo",), "MissingConfigException"), (("model.num_heads=5",), "ConfigError")],
)
def test_the_traceback_is_there_for_the_asking(command, monkeypatch, overrides, error):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match=r"nanoo|num_heads") as caught:
        command("plan", *overrides)
    assert caught.typename == error


# --- explain


def test_explain_keeps_the_key_that_omegaconf_knows():
    schema = OmegaConf.create({"model": {"layers": [{"width": 1}]}})
    OmegaConf.set_struct(schema, True)
    with pytest.raises(Exception, match="widht") as caught:
        schema.model.layers[0].widht = 2
    assert cli.explain(caught.value).startswith("model.layers.0.widht: no such key")


def test_explain_finds_our_error_under_a_resolvers():
    def fail():
        raise UserError("no name for it")

    OmegaConf.register_new_resolver("fails", fail, replace=True)
    with pytest.raises(Exception, match="no name") as caught:
        OmegaConf.create({"name": "${fails:}"})["name"]
    assert not isinstance(caught.value, UserError)
    assert cli.explain(caught.value) == "no name for it"


# --- real processes


def test_a_process_ends_with_one_line_and_status_1(tmp_path):
    done = in_a_process(tmp_path, "yxanul.plan", "model.hiden_size=8")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: model.hiden_size: no such key; did you mean model.hidden_size?\n"
    assert list(tmp_path.iterdir()) == []


def test_a_process_shows_the_traceback_for_the_asking(tmp_path):
    done = in_a_process(tmp_path, "yxanul.plan", "data=parquet", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "yxanul.errors.ConfigError: data.path=" in done.stderr


def test_missing_data_says_what_it_is_and_what_runs_without_it(tmp_path):
    overrides = ("experiment=quickstart", "data=fineweb_edu", "data.path=not/here", "hydra.run.dir=run")
    done = in_a_process(tmp_path, "yxanul.train", *overrides)
    assert done.returncode == 1
    assert re.fullmatch(r"error: data\.path=not/here: [^\n]*\n", done.stderr), done.stderr
    assert "Yxanul/fineweb-edu-highest-quality-2025" in done.stderr and "experiment=quickstart" in done.stderr
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert not written & {"checkpoints", "metrics.jsonl", "result.json"}


@pytest.mark.parametrize(
    ("experiment", "lengths"),
    [
        ("research", [8, 16, 32, 64, 128, 256, 512, 768, 1536, 2048]),
        ("quickstart", None),
    ],
)
def test_plan_prints_the_stages(tmp_path, experiment, lengths):
    done = in_a_process(tmp_path, "yxanul.plan", f"experiment={experiment}")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r" *\d+ +\d+ ", line)]
    stages = [int(row[0]) for row in rows]
    assert stages == sorted(set(stages)) and stages
    if lengths is not None:
        assert stages == list(range(1, 11))
        assert [int(row[1]) for row in rows] == lengths
    assert re.search(r"^ *all +[\d,]+ ", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_plan_says_how_many_gpus_pay(command):
    done = command("plan", "hardware=h100", "hardware.nodes=2", "hardware.gpus_per_node=8", "hardware.node_bandwidth=5")
    assert (done.status, done.err) == (0, "")
    said = " ".join(done.out.split())
    assert "GPUs time communication speedup GPU-hours" in said
    assert re.search(r"communication [\d.]+% of the time", said) and "more than 8 GPUs do not pay" in said


def test_plan_of_one_device_says_nothing_of_several(command):
    done = command("plan", "hardware=h100")
    assert (done.status, done.err) == (0, "") and "communication" not in done.out and "GPU-hours" not in done.out


@pytest.mark.parametrize("program", ["train", "plan"])
def test_help_names_groups_keys_and_examples(tmp_path, program):
    done = in_a_process(tmp_path, f"yxanul.{program}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: python -m yxanul.{program} " in done.stdout
    assert "python -m yxanul.train experiment=quickstart" in done.stdout
    for group in (path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        choices = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
        assert f"{group}: {', '.join(choices)}\n" in done.stdout
    for key in ("hidden_size:", "max_step_tokens:", "resume_from_checkpoint:"):
        assert key in done.stdout


def test_cfg_job_prints_the_composed_configuration(tmp_path, compose):
    done = in_a_process(tmp_path, "yxanul.train", "--cfg", "job", "experiment=quickstart", "seed=7")
    assert (done.returncode, done.stderr) == (0, "")
    printed = OmegaConf.create(done.stdout)
    assert printed.seed == 7
    assert printed.model.hidden_size == compose("experiment=quickstart").model.hidden_size
    assert list(tmp_path.iterdir()) == []
