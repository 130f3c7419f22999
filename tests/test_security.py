"""What a stranger's file, a stranger's text and the user's own secrets can do: nothing, and nowhere to be found."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from plotly.graph_objects import Bar, Figure

from yxanul import cli, report
from yxanul.plan import plan
from yxanul.reporting.page import html_page

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Those that a configuration of logging silenced speak again for other tests."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


# --- no configuration names code


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs `python -m yxanul.plan` in this process, in an empty folder, which is `tmp_path / "here"`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that what the command sets is undone

    def run(*arguments: str, task=plan) -> Outcome:
        flags = [argument for argument in arguments if argument.startswith("--")]
        overrides = [argument for argument in arguments if not argument.startswith("--")]
        monkeypatch.setattr(sys, "argv", ["yxanul.plan", *flags, "experiment=quickstart", *overrides])
        return Outcome(cli.run(task, "plan"), *capfd.readouterr())

    return run


MAKES = {"_target_": "os.mkdir", "path": "made"}
"""Makes a folder; Hydra itself has nothing against it."""

FOREIGN = {
    "callback": ({"callbacks": {"x": MAKES}}, "hydra.callbacks.x._target_"),
    "callback by interpolation": ({"callbacks": "${oc.create:{x:{_target_:os.mkdir,path:made}}}"}, "hydra.callbacks.x"),
    "launcher": ({"launcher": {"_target_": "os.mkdir", "path": "made"}}, "hydra.launcher._target_"),
    "in a launcher": (
        {"launcher": {"_target_": "hydra_plugins.yxanul.InThisProcess", "x": [MAKES]}},
        "hydra.launcher.x._target_",
    ),
    "sweeper": ({"sweeper": {"_target_": "os.mkdir"}}, "hydra.sweeper._target_"),
    "another's plugin": ({"launcher": {"_target_": "hydra_plugins.other.Launcher"}}, "hydra.launcher._target_"),
    "handler": (
        {"job_logging": {"root": {}, "handlers": {"x": {"class": "os.mkdir", "path": "made"}}}},
        "hydra.job_logging.handlers.x.class",
    ),
    "factory": (
        {"job_logging": {"root": {}, "filters": {"x": {"()": "os.mkdir", "path": "made"}}}},
        "hydra.job_logging.filters.x.()",
    ),
    "factory by interpolation": (
        {
            "sweeper": {"params": {"()": "os.mkdir", "path": "made"}},
            "job_logging": {"root": {}, "filters": {"x": "${hydra.sweeper.params}"}},
        },
        "hydra.job_logging.filters.x",
    ),
    "logged to": (
        {"hydra_logging": {"root": {}, "handlers": {"x": {"class": "logging.StreamHandler", "stream": "ext://os.x"}}}},
        "hydra.hydra_logging.handlers.x.stream",
    ),
}
"""What a file says of hydra, and what the error is to name."""


@pytest.fixture
def stranger(tmp_path):
    """Writes experiment=<name> of somebody else; returns the flag that lets Hydra find it."""

    def write(name: str, hydra: dict) -> str:
        path = tmp_path / "conf" / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# @package _global_\n" + yaml.safe_dump({"defaults": ["quickstart"], "hydra": hydra}))
        return f"--config-dir={tmp_path / 'conf'}"

    return write


def check_refused(outcome: Outcome, key: str, tmp_path: Path) -> None:
    assert (outcome.status, outcome.out) == (1, "")
    assert re.fullmatch(r"error: \S[^\n]*\n", outcome.err), outcome.err
    assert key in outcome.err
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "flags"),
    [*((kind, ()) for kind in FOREIGN), ("callback", ("--multirun",)), ("callback", ("--cfg=hydra",))],
)
def test_a_file_that_names_code_is_refused(command, stranger, tmp_path, kind, flags):
    hydra, key = FOREIGN[kind]
    found = stranger("strange", hydra)
    check_refused(command(found, "experiment=strange", *flags), key, tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ("hydra.launcher._target_=os.system",),
        ("hydra.sweeper._target_=os.system", "--multirun"),
        ("hydra.sweeper.sampler._target_=os.system", "hydra/sweeper=optuna", "--multirun"),
        ("+hydra.callbacks.x._target_=os.mkdir", "+hydra.callbacks.x.path=made"),
        ("hydra.job_logging.handlers.console.class=os.mkdir", "hydra/job_logging=default"),
        ("+model._target_=os.mkdir",),
        ("+_target_=os.mkdir",),
    ],
    ids=" ".join,
)
def test_an_override_that_names_code_is_refused(command, tmp_path, overrides):
    check_refused(command(*overrides), overrides[0].lstrip("+"), tmp_path)


def test_code_that_only_the_runs_of_a_sweep_name_is_refused(command, stranger, tmp_path):
    hydra, key = FOREIGN["factory"]
    flags = {stranger(name, hydra) for name in ("one", "two")}
    outcome = command(*flags, "experiment=one,two", "--multirun", task=lambda config: pytest.fail("ran"))
    assert outcome.status == 1 and re.fullmatch(rf"error: {re.escape(key)}[^\n]*\n", outcome.err)
    assert not (tmp_path / "here" / "made").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ("hydra/launcher=slurm", "+hydra.launcher.extra.comment=${seed}"),
        ("hydra/launcher=submitit_local", "hydra/sweeper=learning_rates", "hydra.sweeper.sampler.seed=${seed}"),
        ("hydra/sweeper=optuna", "hydra.sweeper.sampler={_target_:optuna.samplers.RandomSampler,seed:1}"),
        ("hydra/job_logging=default", "hydra/hydra_logging=default"),
        ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled"),
    ],
    ids=" ".join,
)
def test_what_is_ours_may_be_named(command, overrides):
    outcome = command(*overrides, task=lambda config: 0)
    assert (outcome.status, outcome.err) == (0, "")


# --- secrets stay where they are


SECRETS = {name: f"marker-{name.lower().replace('_', '-')}" for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY")}
SECRETS["WANDB_API_KEY"] = "0123456789abcdef" * 2 + "01234567"  # else wandb would not have it


def holds_secret(content: bytes) -> bool:
    return any(secret.encode() in content for secret in SECRETS.values())


def leaks(folder: Path) -> Iterator[Path]:
    """Files that hold a secret, and folders and files that are called by one."""
    for path in folder.rglob("*"):
        if holds_secret(str(path).encode()) or (path.is_file() and holds_secret(path.read_bytes())):
            yield path


@pytest.fixture(scope="session")
def trained(tiny_run, tmp_path_factory):
    """A folder in which a run was trained with secrets in the environment; the run's folder, and what it printed."""
    working = tmp_path_factory.mktemp("secrets")
    environment = os.environ | SECRETS | {"PYTHONPATH": str(ROOT), "HYDRA_FULL_ERROR": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"HOME": str(working), "COLUMNS": "160"}
    command = [sys.executable, "-m", "yxanul.train", *tiny_run, "tracking=offline", "hydra.run.dir=run"]
    ended = subprocess.run(command, cwd=working, env=environment, capture_output=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, b"")
    return working, working / "run", ended.stdout


def test_a_run_and_its_report_tell_no_secret(trained, monkeypatch, capfd):
    working, folder, printed = trained
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    assert report.main([str(folder)]) == 0
    out, err = capfd.readouterr()
    assert {"report.html", "wandb", "tensorboard", ".hydra"} <= {path.name for path in folder.iterdir()}
    assert list(leaks(working)) == []
    assert not holds_secret(printed + out.encode() + err.encode())


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.path=${oc.env:WANDB_API_KEY}",),
        ("data.path=${oc.env:HF_TOKEN,none}",),
        ("hydra.run.dir=runs/${oc.env:AWS_SECRET_ACCESS_KEY}",),
        ("model.hidden_size=${oc.env:HF_TOKEN}",),  # of which OmegaConf would say what it is not
        ("hydra.job.env_copy=[HF_TOKEN]",),
        ("+hydra.job.env_set.WANDB_API_KEY=${oc.env:WANDB_API_KEY}",),
        ("data.path=${oc.env:WANDB_API_KEY}", "--cfg=job", "--resolve"),
        ("--multirun", "hydra.sweep.dir=sweeps/${oc.env:HF_TOKEN}", "seed=1,2"),
    ],
    ids=" ".join,
)
def test_a_secret_is_no_value(command, monkeypatch, tmp_path, overrides):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    outcome = command(*overrides)
    assert outcome.status == 1 and re.fullmatch(r"error: [^\n]+ leave a secret in the environment[^\n]*\n", outcome.err)
    assert list(leaks(tmp_path)) == [] and not holds_secret((outcome.out + outcome.err).encode())


def test_what_is_no_secret_is_read_from_the_environment(command, monkeypatch):
    monkeypatch.setenv("TOKENS", "4000000")  # of a budget
    seen = []
    overrides = ("train.tokens=${oc.env:TOKENS}", "data.cache=${oc.env:KEYBOARD,there}")
    assert command(*overrides, task=lambda config: seen.append(config) or 0).status == 0
    assert (seen[0].train.tokens, seen[0].data.cache) == (4_000_000, "there")


# --- texts are no markup


HOSTILE = "</script></title></textarea><script>alert(1)</script><img src=x onerror=alert(1)>[red]<!--${1}{{x}}"
LEGAL = "<img src=x onerror=alert(1)>[red]"
"""A name that a folder can have."""


class Elements(HTMLParser):
    """The elements of a page, each with the names of its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(name for name, _ in attributes)))


@pytest.fixture
def reported(trained, tmp_path, monkeypatch, capfd):
    """Reports on a sweep of two copies of the run, `text` wherever text is free; what is printed, and the page."""
    monkeypatch.setenv("COLUMNS", "1000")

    def make(text: str, name: str) -> tuple[str, str]:
        sweep = tmp_path / f"sweep {name}"
        for run in (f"{name} 1", f"{name} 2"):
            folder = shutil.copytree(trained[1], sweep / run, ignore=shutil.ignore_patterns("checkpoints", "report*"))
            result = json.loads((folder / "result.json").read_text())
            result["device"] = text
            result["versions"]["torch"] = text
            result["samples"] = [{"prompt": text, "text": text}]
            result["by_position"] = [{"tokens": text}]
            (folder / "result.json").write_text(json.dumps(result))
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["data"]["path"] = config[text] = f"{text} {run}"
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (sweep / "sweep.json").write_text(json.dumps({"runs": {f"{name} 1": f"{text} 1", f"{name} 2": f"{name} 2"}}))
        monkeypatch.setattr(sys, "argv", ["report", str(sweep), text])
        assert report.main([str(sweep)]) == 0
        return capfd.readouterr().out, (sweep / "report.html").read_text()

    return make


def test_a_page_of_hostile_texts_has_the_elements_of_any_other(reported):
    _, harmless = reported("text", "name")
    _, hostile = reported(HOSTILE, LEGAL)
    elements = Elements(hostile).found
    assert elements == Elements(harmless).found
    assert [tag for tag, _ in elements].count("script") == 3, "the data, Plotly and its caller"
    assert not [names for _, names in elements if any(name.startswith("on") for name in names)]


def test_a_plot_of_hostile_texts_has_the_elements_of_any_other():
    harmless, hostile = (html_page(text, [text], text, Figure(Bar(x=[text], y=[1]))) for text in ("text", HOSTILE))
    assert Elements(hostile).found == Elements(harmless).found


def test_hostile_names_are_printed_as_they_are(reported, tmp_path):
    printed, _ = reported(HOSTILE, LEGAL)
    assert f"{HOSTILE} 1" in printed
    assert f"written: {tmp_path / f'sweep {LEGAL}' / 'report.html'}" in printed
