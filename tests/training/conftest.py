"""Whole runs in this process, and trainers without one."""

import io
import itertools
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from yxanul.config import CurriculumConfig, OnSpike, ScheduleConfig, ScheduleKind, Stage, TrainConfig
from yxanul.curriculum import plan
from yxanul.data.stream import Stream
from yxanul.model.attention import sdpa
from yxanul.optim.build import build_optimizers
from yxanul.tracking import Record, Tracker
from yxanul.training.checkpoint import Saver
from yxanul.training.distributed import ALONE
from yxanul.training.evaluation import Score
from yxanul.training.guard import Guard
from yxanul.training.loop import Trainer
from yxanul.training.run import train_run
from yxanul.validation import validate

from .trained import OPTIMIZER

CPU = torch.device("cpu")
STAGES = (Stage(4, 64, 0.2, 0.5, 0.3), Stage(16, 64, 0.4, 1.0, 0.6), Stage(32, 128, 0.4, 1.0, 1.0))
SCHEDULE = ScheduleConfig(ScheduleKind.cosine, warmup=0.1, decay=0.0, floor=0.1)
GUARD = Guard(OnSpike.warn, max_bad_steps=3)


@pytest.fixture(scope="session")
def run(compose, tiny_run):
    """Runs the tiny run with further overrides in a folder; returns the exit status and what was printed."""

    def start(folder: Path, *overrides: str) -> tuple[int, str]:
        config = compose(*tiny_run, *overrides)
        validate(config)
        console = Console(file=io.StringIO(), width=200)
        return train_run(config, folder, console, time.perf_counter()), console.file.getvalue()

    return start


@pytest.fixture(scope="module")
def corpus(make_corpus, small_tokenizer, tmp_path_factory):
    texts = [f"def f{n}(x):\n    return x * {n % 7}  # {'so ' * (n % 9)}it goes\n" for n in range(150)]
    return make_corpus(texts, small_tokenizer, 0.1, tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def trainer(corpus, small_tokenizer, build_model, model_config, tmp_path):
    """Makes a trainer of 12 steps over three stages; its model begins the same every time."""

    def make(micro_batch: int = 4, every: int = 5, evaluate_every=None, guard=GUARD, folder=tmp_path, **rest):
        steps = plan(
            CurriculumConfig(STAGES, None, None),
            TrainConfig(tokens=960, steps=None, max_bad_steps=1, on_spike=OnSpike.warn),
            SCHEDULE,
            OPTIMIZER.lr,
            lambda seq_len: micro_batch,
        )
        model = build_model(model_config(), vocab_size=small_tokenizer.vocab_size, init_std=0.05)
        scores = itertools.count(1)
        values = {
            "model": model,
            "optimizers": build_optimizers(model, OPTIMIZER),
            "stream": Stream(corpus, 1, small_tokenizer.byte_lengths),
            "steps": steps,
            "device": CPU,
            "attention_of": lambda seq_len: sdpa,
            "tracker": Tracker(Record(folder / "metrics.jsonl"), []),
            "saver": Saver(folder / "checkpoints", keep=2, world=ALONE),
            "save_every": every,
            "evaluate_every": evaluate_every,
            "score": lambda: Score(float(next(scores)), 2.0),
            "eval_bytes": 1234,
            "flops_per_token": lambda seq_len: 1000.0 * seq_len,
            "peak_flops": 1e9,
            "guard": guard,
        }
        return Trainer(**(values | rest))

    return make
