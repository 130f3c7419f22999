"""A choice of one's own is one file in a folder that `--config-dir` names."""

import json
from pathlib import Path

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
