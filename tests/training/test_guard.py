"""A loss that stands out is told, skipped, left behind with its data, or ends the run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from yxanul.config import CurriculumConfig, OnSpike, OptimizerConfig, ScheduleConfig, ScheduleKind, Stage, TrainConfig
from yxanul.curriculum import plan
from yxanul.data.stream import Stream
from yxanul.errors import UserError
from yxanul.model.attention import sdpa
from yxanul.optim.build import build_optimizers
from yxanul.tracking import Record, Tracker
from yxanul.training import checkpoint, loop
from yxanul.training.checkpoint import Saver, TrainState
from yxanul.training.distributed import ALONE
from yxanul.training.evaluation import Score
from yxanul.training.guard import LEAST, SIGMAS, WINDOW, Guard, limit
from yxanul.training.loop import Trainer
from yxanul.training.signals import StopRequest

from .trained import rows, weights

CPU = torch.device("cpu")
STEPS = 60
EVERY = 20
SPIKE = 47  # 0-based, in the second stage and after its window is long enough
OPTIMIZER = OptimizerConfig(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, muon=None)
SCHEDULE = ScheduleConfig(ScheduleKind.cosine, warmup=0.1, decay=0.0, floor=0.1)
STAGES = (Stage(8, 64, 0.1, 1.0, 1.0), Stage(16, 64, 0.9, 1.0, 1.0))


def losses(count: int) -> list[float]:
    return (4 + 0.1 * np.random.default_rng(1).standard_normal(count)).tolist()


def test_the_limit_is_some_deviations_above_the_mean():
    seen = losses(WINDOW)
    assert limit(seen) == pytest.approx(np.mean(seen) + SIGMAS * np.std(seen))
    assert max(seen) < limit(seen) < 5


def test_nothing_stands_out_from_too_few():
    assert limit([]) == limit(losses(LEAST - 1)) == math.inf > limit(losses(LEAST))


@pytest.fixture
def trainer(corpus, small_tokenizer, build_model, model_config, tmp_path):
    """Makes a trainer of STEPS steps that saves every EVERY; `moved` tokens of the data are left out from a step on."""

    def make(on_spike: OnSpike, name: str = "run", moved: tuple[int, int] = (STEPS, 0), every: int = EVERY) -> Trainer:
        curriculum = CurriculumConfig(STAGES, None, None)
        budget = TrainConfig(tokens=1, steps=STEPS, max_bad_steps=3, on_spike=on_spike)
        steps = plan(curriculum, budget, SCHEDULE, OPTIMIZER.lr, lambda seq_len: 64)
        begin, tokens = moved
        model = build_model(model_config(), vocab_size=small_tokenizer.vocab_size, init_std=0.05)
        return Trainer(
            model=model,
            optimizers=build_optimizers(model, OPTIMIZER),
            stream=Stream(corpus, 1, small_tokenizer.byte_lengths),
            steps=steps[:begin] + [replace(step, first_token=step.first_token + tokens) for step in steps[begin:]],
            device=CPU,
            attention_of=lambda seq_len: sdpa,
            tracker=Tracker(Record(tmp_path / name / "metrics.jsonl"), []),
            saver=Saver(tmp_path / name / "checkpoints", keep=5, world=ALONE),
            save_every=every,
            evaluate_every=None,
            score=lambda: Score(1.0, 2.0),
            eval_bytes=1,
            flops_per_token=lambda seq_len: 1.0,
            peak_flops=None,
            guard=Guard(on_spike, max_bad_steps=3),
        )

    return make


@pytest.fixture
def spikes(monkeypatch):
    """Plants a spike wherever a trainer reads a step's data: a loss and a gradient of many times their size."""

    def plant(*first_tokens: int) -> None:
        at = []
        original_feed, original_gradient = loop.feed, loop.add_gradient

        def feed(stream, attention_of, places, device, rank=0):
            places = list(places)
            for (step, _), batch in zip(places, original_feed(stream, attention_of, places, device, rank), strict=True):
                at[:] = [step.first_token]
                yield batch

        def add_gradient(model, batch, step_tokens):
            factor = 50 if at[0] in first_tokens else 1
            return factor * original_gradient(model, batch, step_tokens / factor)

        monkeypatch.setattr(loop, "feed", feed)
        monkeypatch.setattr(loop, "add_gradient", add_gradient)

    return plant


def first_token(trainer, index: int) -> int:
    return trainer.steps[index].first_token


def test_a_run_without_spikes_is_left_alone(trainer):
    runs = [trainer(kind, kind.value) for kind in OnSpike]
    for each in runs:
        each.train(TrainState(), StopRequest())
        assert rows(each, "event") == []
        assert torch.equal(weights(each), weights(runs[0]))


def test_a_spike_is_told_and_taken(trainer, spikes):
    mine = trainer(OnSpike.warn)
    spikes(first_token(mine, SPIKE))
    state, _ = mine.train(TrainState(), StopRequest())
    (event,) = rows(mine, "event")
    assert event["step"] == SPIKE + 1 and "is a spike" in event["message"] and "skipped" not in event["message"]
    assert state.bad_steps == 0


def test_a_skipped_spike_leaves_no_trace(trainer, spikes, monkeypatch):
    """It is as a step that was not finite."""
    mine, reference = trainer(OnSpike.skip), trainer(OnSpike.warn, "reference")
    original = loop.update

    def unless_spiked(model, optimizers, step, nats, num_bytes, most=math.inf):
        nats = nats * math.nan if step.index == SPIKE else nats
        return original(model, optimizers, step, nats, num_bytes, most)

    monkeypatch.setattr(loop, "update", unless_spiked)
    reference.train(TrainState(), StopRequest())
    monkeypatch.setattr(loop, "update", original)
    spikes(first_token(mine, SPIKE))
    state, _ = mine.train(TrainState(), StopRequest())
    assert torch.equal(weights(mine), weights(reference))
    (event,) = rows(mine, "event")
    assert event["step"] == SPIKE + 1 and event["message"].endswith("; skipped")
    assert (state.bad_steps, state.step, state.bad_in_a_row) == (1, STEPS, 0)


def test_a_spike_ends_the_run_and_the_checkpoints_are_whole(trainer, spikes):
    mine = trainer(OnSpike.stop)
    spikes(first_token(mine, SPIKE))
    with pytest.raises(UserError, match=rf"^step {SPIKE + 1}: loss .* is a spike.*optimizer\.lr") as error:
        mine.train(TrainState(), StopRequest())
    assert "\n" not in str(error.value)
    mine.saver.close()  # as the run does: a checkpoint under way is there then
    saved = checkpoint.checkpoints(mine.saver.folder)
    assert [path.name for path in saved] == ["step-00000020", "step-00000040"]
    for path in saved:
        checkpoint.verify(path)


def test_a_rollback_is_training_on_from_the_checkpoint_with_the_data_after_the_spike(trainer, spikes):
    mine = trainer(OnSpike.rollback)
    spikes(first_token(mine, SPIKE))
    state, score = mine.train(TrainState(), StopRequest())
    assert (state.step, state.rollbacks, score is not None) == (STEPS, 1, True)

    left_out = first_token(mine, SPIKE + 1) - first_token(mine, 40)
    assert state.skipped_tokens == left_out > 0
    reference = trainer(OnSpike.warn, "reference", moved=(40, left_out))
    reference.train(TrainState(), StopRequest())
    assert torch.equal(weights(mine), weights(reference))

    assert [row["step"] for row in rows(mine, "train")] == list(range(1, STEPS + 1))
    (event,) = rows(mine, "event")
    assert event["step"] == 40 and "back to step-00000040" in event["message"]
    keys = ("step", "tokens", "bytes", "loss", "lr", "seq_len")
    assert [[row[key] for key in keys] for row in rows(mine, "train")] == [
        [row[key] for key in keys] for row in rows(reference, "train")
    ]


def test_going_on_from_a_checkpoint_after_a_rollback_reads_the_same_data(trainer, spikes):
    whole = trainer(OnSpike.rollback)
    spikes(first_token(whole, 30), first_token(whole, SPIKE))
    whole.train(TrainState(), StopRequest())
    again = trainer(OnSpike.rollback)  # in the same folder
    state = checkpoint.load(again.saver.folder / "step-00000040", again.model, again.optimizers)
    again.train(state, StopRequest())
    assert torch.equal(weights(again), weights(whole))


def test_without_a_checkpoint_a_spike_is_skipped(trainer, spikes):
    mine = trainer(OnSpike.rollback, every=1000)
    spikes(first_token(mine, SPIKE))
    state, _ = mine.train(TrainState(), StopRequest())
    assert (state.rollbacks, state.bad_steps, state.step) == (0, 1, STEPS)
    assert rows(mine, "event")[0]["message"].endswith("skipped, as there is no checkpoint yet")


def test_spikes_without_end_end_the_run(trainer, spikes, monkeypatch):
    mine = trainer(OnSpike.rollback)
    monkeypatch.setattr(loop, "limit", lambda seen: 0.0 if len(seen) >= LEAST else math.inf)
    with pytest.raises(UserError, match=r"is a spike.*, after 3 rollbacks; lower optimizer\.lr"):
        mine.train(TrainState(), StopRequest())


def test_skipped_spikes_count_as_bad_steps(trainer, spikes):
    mine = trainer(OnSpike.skip)
    spikes(*(first_token(mine, SPIKE + n) for n in range(3)))
    with pytest.raises(UserError, match=f"or a spike, for 3 steps in a row, up to step {SPIKE + 3};"):
        mine.train(TrainState(), StopRequest())
