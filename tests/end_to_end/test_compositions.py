"""Whatever is composed plans and trains a step, or is refused in one line: nothing else comes of it.

Choices are drawn from conf/ and values by the schema's types, so that new ones are tried without being named here.
"""

import argparse
import inspect
import itertools
import math
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from yxanul.composition import config_dir
from yxanul.config import Config, TokenizerKind
from yxanul.model import count
from yxanul.plan import plan
from yxanul.train import train

SMALL = (
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.intermediate_size=48",
    "model.max_seq_len=64",
    "model.embedding_rank=16",
    "curriculum.max_seq_len=64",
    "curriculum.max_step_tokens=128",
    "hardware.device=cpu",
    "hardware.micro_batch=auto",
    "hardware.peak_tflops={fp32:0.1,bf16:0.1}",
    "attention=sdpa",
    "cross_entropy=chunked",
    "tokenizer.vocab_size=512",
    "tokenizer.transition=400",
    "tokenizer.train_bytes=20000",
    "data.kind=files",
    "data.repo=null",
    "data.held_out=0.2",
    "data.workers=1",
    "ngram.tokens=5000",
    "train.steps=1",
    "evaluate.every=null",
    "evaluate.bytes=1000",
    "evaluate.samples=1",
    "evaluate.sample_tokens=4",
    "tracking.tensorboard=false",
    "tracking.wandb.mode=disabled",
)
"""What makes a run of any choices one of a second; the tokenizer and the data beside it."""

WHOLE = ["1", "2", "3", "7", "8", "64", "100", "512", "4096", "1000000", "1000000000000000000", "0", "-1", "null"]
REAL = ["0.5", "1", "0.1", "1e-3", "1e-12", "1e-300", "3", "1e30", "1e300", "0", "-1", "nan", "inf", "null"]
TEXT = ["text", "x", "auto", "all", "'*'", "''", "null"]
ODD = ["nan", "''", "x", "0.5", "[]", "[1]", "{}", "{a:1}", "null", "-7", "1e400"]
"""Values to draw, likely ones and borderline ones; the last for any key, whatever its type."""


def leaves(schema: type = Config, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Every key that holds a value, and its type."""
    for name, hint in get_type_hints(schema).items():
        inner = next((each for each in get_args(hint) if each is not type(None)), hint)
        if hasattr(inner, "__dataclass_fields__"):
            yield from leaves(inner, f"{prefix}{name}." + ("0." if get_origin(hint) is list else ""))
        else:
            yield prefix + name, list if get_origin(hint) is list else inner


def values(hint: type) -> list[str]:
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return [each.value for each in hint]
    if hint is list:
        return ["[]", "[0.9,0.99]", "['*']", "[1,2,3]", "[nan,nan]"]
    return {int: WHOLE, float: REAL, bool: ["true", "false"], str: TEXT}.get(hint, TEXT + WHOLE)


def choices(group: str) -> list[str]:
    folder = config_dir() / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


GROUPS = sorted(path.name for path in config_dir().iterdir() if path.is_dir() and path.name not in ("hydra", "sweep"))
KEYS = dict(leaves())
NOT_DRAWN = ("data.path", "data.cache", "tokenizer.path", "tokenizer.repo", "init_from", "resume_from_checkpoint")
"""Of these a wrong one is a file or a repository that is not there, which the tables of bad input have."""


@st.composite
def compositions(draw) -> tuple[list[str], list[str]]:
    """Choices of some groups, and values of some keys."""
    groups = draw(st.lists(st.sampled_from(GROUPS), unique=True, max_size=4))
    keys = draw(st.lists(st.sampled_from([key for key in KEYS if key not in NOT_DRAWN]), unique=True, max_size=3))
    chosen = [f"{group}={draw(st.sampled_from(choices(group)))}" for group in groups]
    changed = [f"{key}={draw(st.sampled_from(values(KEYS[key]) * 3 + ODD))}" for key in keys]
    return chosen, changed + ["tokenizer.path=null"] * draw(st.booleans())  # train it where it is one that is trained


def is_small(config: Config) -> bool:
    """Whether a step of a run that was shrunk is still one of a second."""
    return (
        count.parameters(config.model, config.tokenizer.vocab_size) < 2_000_000
        and config.train.steps == 1
        and (config.curriculum.max_step_tokens or math.inf) <= 4096
        and config.evaluate.samples * config.evaluate.sample_tokens < 200
        and config.hardware.compile is not True
        and config.tracking.wandb.mode.value not in ("online", "offline")
        and (config.tokenizer.kind is not TokenizerKind.hub or config.tokenizer.path is not None)
        and config.data.repo is None
    )


def plan_or_train(config: Config) -> int:
    return train(config) if is_small(config) else plan(config)


@pytest.fixture
def check(command, tmp_path, small_tokenizer):
    """Composes, plans and where it is small trains, and looks at what comes of it."""
    (tmp_path / "text").mkdir()
    text = Path(argparse.__file__).read_text(encoding="utf-8")
    pieces = [text[start : start + 1000] for start in range(0, 60_000, 1000)]
    (tmp_path / "text" / "argparse.txt").write_text("\n<|endoftext|>\n".join(pieces), encoding="utf-8")
    runs = (tmp_path / f"run-{number}" for number in itertools.count())

    def run(chosen: list[str], changed: list[str]) -> int:
        base = (*chosen, *SMALL, f"tokenizer.path={small_tokenizer.path}", f"data.path={tmp_path / 'text'}")
        status, _, err = command(*changed, f"hydra.run.dir={next(runs)}", base=base, task=plan_or_train)
        assert (status, err) == (0, "") or (status == 1 and re.fullmatch(r"error: \S[^\n]*\n", err)), err
        return status

    return run


def several(examples: int, **more) -> settings:
    """One folder and one tokenizer serve all examples."""
    return settings(max_examples=examples, suppress_health_check=[HealthCheck.function_scoped_fixture], **more)


@given(compositions())
@several(24, derandomize=True, database=None)
def test_any_composition_trains_or_is_refused(check, composition):
    check(*composition)


@pytest.mark.slow
@given(compositions())
@several(500, phases=[Phase.reuse, Phase.generate])  # to shrink takes longer than to look
def test_many_compositions_train_or_are_refused(check, composition):
    check(*composition)


def test_the_small_run_of_every_choice_trains(check):
    """Else the properties above would hold of refusals alone."""
    for group in ("model", "precision", "tokenizer", "curriculum", "optimizer", "schedule"):
        assert check([f"{group}={choices(group)[-1]}"], []) == 0
