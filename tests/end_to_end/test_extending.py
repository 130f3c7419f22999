"""A choice of one's own is one file in a folder that `--config-dir` names."""

import json
import re
import shutil
from pathlib import Path

import pytest

from yxanul.tracking import read_rows

CURRICULUM = """
defaults: [none, _self_]
stages:
  - {seq_len: 8, step_tokens: 256, share: 0.5, lr_scale: 0.5, grad_clip: 1.0}
  - {seq_len: 32, step_tokens: 512, share: 0.5, lr_scale: 1.0, grad_clip: 1.0}
"""
TOKENIZER = """
defaults: [superbpe8k, _self_]
vocab_size: 600
transition: 500
train_bytes: 300_000
"""
EXPERIMENT = """
# @package _global_
defaults: [override /curriculum: mine, override /tokenizer: mine]
seed: 7
"""


README = Path(__file__).resolve().parents[2] / "README.md"


def test_a_curriculum_a_tokenizer_and_an_experiment_of_ones_own(command, tiny_run, tmp_path):
    for group, text in {"curriculum": CURRICULUM, "tokenizer": TOKENIZER, "experiment": EXPERIMENT}.items():
        folder = tmp_path / "mine" / group
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text(text.lstrip())
    base = [each for each in tiny_run if not each.startswith(("experiment", "tokenizer", "curriculum"))]
    status, _, err = command("experiment=mine", "hydra.run.dir=run", base=("--config-dir=mine", *base))
    assert status == 0, err
    plan = json.loads(Path("run/plan.json").read_text())
    assert [(stage["seq_len"], stage["step_tokens"]) for stage in plan["stages"]] == [(8, 256), (32, 512)]
    assert len(json.loads(Path("run/tokenizer.json").read_text())["model"]["vocab"]) <= 600
    assert "seed: 7" in Path("run/config.yaml").read_text()


@pytest.fixture
def own_precision(tmp_path):
    """The two files of the README, in a folder where a command can be started, and the flag that finds the YAML."""
    files = {"Python": "yxanul_precision/rounded.py", "YAML": "mine/precision/rounded.yaml"}
    for kind, name in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(re.search(rf"<!-- precision: {kind} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)[1])
    return "--config-dir=mine"


def test_a_precision_of_ones_own_is_two_files(train, tiny_run, own_precision, undisturbed, tmp_path):
    base = (own_precision, *(each for each in tiny_run if not each.startswith("precision=")))
    status, _, err = train("precision=rounded", "hydra.run.dir=run", base=base, cwd=tmp_path)
    assert (status, err) == (0, "")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["computes"] == "rounded over fp32"
    formats = {(each["name"].startswith("blocks."), each["format"]) for each in plan["products"]}
    assert formats == {(True, "rounded"), (False, "fp32")}
    ours, exact = (
        [row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]
        for folder in (tmp_path / "run", undisturbed[1])
    )
    assert ours == pytest.approx(exact, rel=0.02) and ours != exact

    shutil.rmtree(tmp_path / "yxanul_precision")  # what came of it needs neither file
    use = {"program": ("-m", "yxanul.generate"), "base": (), "cwd": tmp_path}
    status, out, err = train("--max-new-tokens=4", "run", "def", **use)
    assert status == 0 and out.startswith("def"), err
    status, _, err = train("precision=rounded", "seed=2", base=base, cwd=tmp_path)
    assert status == 1 and err.count("\n") == 1
    assert "precision.layers=rounded: No module named" in err and "into a folder yxanul_precision" in err


@pytest.mark.parametrize("name", ["os.path", "../rounded", "a-b"])
def test_a_precision_names_a_file_of_that_folder_and_nothing_else(command, name):
    status, _, err = command(f"precision.layers={name}")
    assert status == 1 and err.count("\n") == 1
    assert f"precision.layers={name}: must be the name of a Python file" in err
