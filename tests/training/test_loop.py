"""The loop executes the plan, as a plain loop of torch's own parts would, in whatever micro-batches, and disturbed."""

import itertools
import math
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from yxanul.errors import UserError
from yxanul.model.attention import sdpa
from yxanul.tracking import read_rows
from yxanul.training import checkpoint, loop
from yxanul.training.checkpoint import TrainState
from yxanul.training.evaluation import Score
from yxanul.training.signals import StopRequest
from yxanul.training.step import make_batch

from .trained import OPTIMIZER, rows, weights


class StopAt(StopRequest):
    """Asks to stop at the n-th time that somebody looks."""

    def __init__(self, look: int):
        self.looks = 0
        self.at = look

    @property
    def signal(self):
        self.looks += 1
        return signal.SIGTERM if self.looks >= self.at else None


def plain_training(trainer, skipped: tuple[int, ...] = ()) -> list[tuple[float, float]]:
    """The same training from torch's parts: each step as one batch, full logits, one AdamW, clipping by hand.

    Returns loss per token and gradient norm of each step; steps (1-based) in `skipped` leave no trace.
    """
    model = trainer.model
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": OPTIMIZER.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim != 2], "weight_decay": 0.0},
        ],
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
    )
    seen = []
    for step in trainer.steps:
        whole = replace(step, micro_batches=(step.tokens // step.seq_len,))
        batch = make_batch(trainer.stream.micro_batch(whole, 0), sdpa)
        hidden, weight = model.embedding.head(model.hidden(batch.packed))
        loss = F.cross_entropy(hidden @ weight.T, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        for parameter in model.parameters():
            parameter.grad *= min(1.0, step.grad_clip / norm.item())
        for group in optimizer.param_groups:
            group["lr"] = step.lr
        if step.index + 1 not in skipped:
            optimizer.step()
        seen.append((loss.item(), norm.item()))
    return seen


# The plan is executed


def test_the_record_is_the_plan(trainer):
    mine = trainer()
    state, score = mine.train(TrainState(corpus="c", tokenizer="t"), StopRequest())
    found = rows(mine)
    assert len({step.seq_len for step in mine.steps}) == 3 and len(mine.steps) >= 10
    assert [(row["step"], row["stage"], row["seq_len"], row["lr"]) for row in found] == [
        (step.index + 1, step.stage + 1, step.seq_len, step.lr) for step in mine.steps
    ]
    assert [row["tokens"] for row in found] == list(itertools.accumulate(step.tokens for step in mine.steps))
    read = [
        sum(mine.stream.micro_batch(step, index).bytes for index in range(len(step.micro_batches)))
        for step in mine.steps
    ]
    assert [row["bytes"] for row in found] == list(itertools.accumulate(read))
    for row, step, size in zip(found, mine.steps, read, strict=True):
        assert row["bits_per_byte"] == pytest.approx(row["loss"] * step.tokens / math.log(2) / size)
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * 1000 * step.seq_len / 1e9)
        assert row["bytes_per_second"] / row["tokens_per_second"] == pytest.approx(size / step.tokens)
    assert all(before["seconds"] < after["seconds"] for before, after in itertools.pairwise(found))
    total = mine.steps[-1]
    assert state.losses == [row["loss"] for row in found if row["stage"] == total.stage + 1]
    assert replace(state, losses=[]) == TrainState(
        len(mine.steps), total.first_token + total.tokens, sum(read), state.seconds, 0, 0, "c", "t"
    )
    assert score == Score(1.0, 2.0)


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 10**6])
def test_any_accumulation_trains_as_a_plain_loop_does(trainer, micro_batch, tmp_path):
    mine = trainer(micro_batch)
    reference = trainer(micro_batch, folder=tmp_path / "reference")
    assert max(len(step.micro_batches) for step in mine.steps) == {1: 16, 3: 6, 4: 4, 10**6: 1}[micro_batch]
    began = weights(mine)
    assert torch.equal(began, weights(reference))
    mine.train(TrainState(), StopRequest())
    expected = plain_training(reference)
    assert [row["loss"] for row in rows(mine)] == pytest.approx([loss for loss, _ in expected], rel=2e-5)
    assert [row["grad_norm"] for row in rows(mine)] == pytest.approx([norm for _, norm in expected], rel=1e-3)
    moved = (weights(reference) - began).norm()
    assert (weights(mine) - weights(reference)).norm() < 1e-3 * moved
    assert expected[-1][0] < expected[0][0] - 0.3  # and it learns
    clipped = [norm > step.grad_clip for (_, norm), step in zip(expected, mine.steps, strict=True)]
    assert any(clipped)


@pytest.mark.parametrize(
    ("every", "expected"), [(None, [12]), (1, list(range(1, 13))), (5, [5, 10, 12]), (4, [4, 8, 12]), (100, [12])]
)
def test_evaluations_come_when_asked_and_at_the_end_once(trainer, every, expected):
    mine = trainer(evaluate_every=every)
    _, score = mine.train(TrainState(), StopRequest())
    found = rows(mine, "eval")
    assert [row["step"] for row in found] == expected
    assert [row["bits_per_byte"] for row in found] == list(range(1, len(expected) + 1))
    assert score.bits_per_byte == len(expected)
    at = {row["step"]: row for row in rows(mine)}
    for row in found:
        assert (row["tokens"], row["bytes"]) == (at[row["step"]]["tokens"], at[row["step"]]["bytes"])
        assert row["eval_bytes"] == 1234 and row["perplexity"] == 2.0


@pytest.mark.parametrize(("every", "kept"), [(1, [11, 12]), (5, [10, 12]), (6, [6, 12]), (100, [12])])
def test_checkpoints_come_when_due_and_at_the_end(trainer, every, kept):
    mine = trainer(every=every)
    mine.train(TrainState(), StopRequest())
    saved = checkpoint.checkpoints(mine.saver.folder)
    assert [int(path.name.removeprefix("step-")) for path in saved] == kept


def test_a_stream_that_breaks_the_plan_is_noticed(trainer):
    mine = trainer()

    class Short:
        def micro_batch(self, step, index, rank):
            batch = mine.stream.micro_batch(step, index, rank)
            return replace(batch, tokens=batch.tokens[:-1], targets=batch.targets[:-1]) if step.index == 3 else batch

    with pytest.raises(AssertionError):
        replace(mine, stream=Short()).train(TrainState(), StopRequest())
    assert [row["step"] for row in rows(mine)] == [1, 2, 3]


# Stopping and going on


@pytest.mark.parametrize("look", [2, 4, 5, 9, 14, 21])
def test_a_stop_saves_whole_steps_and_going_on_changes_nothing(trainer, tmp_path, look):
    undisturbed = trainer(folder=tmp_path / "undisturbed")
    expected, score = undisturbed.train(TrainState(), StopRequest())

    first = trainer()
    state, no_score = first.train(TrainState(), StopAt(look))
    looks = list(itertools.accumulate(len(step.micro_batches) for step in first.steps))
    assert state.step == sum(looks_so_far < look for looks_so_far in looks)
    assert no_score is None
    assert [row["step"] for row in rows(first)] == list(range(1, state.step + 1))
    saved = checkpoint.checkpoints(first.saver.folder)
    assert (saved[-1].name == f"step-{state.step:08d}") if state.step else not saved

    second = trainer()
    if saved:
        loaded = checkpoint.load(saved[-1], second.model, second.optimizers)
        assert loaded == state
    final, its_score = second.train(state, StopRequest())
    assert replace(final, seconds=0) == replace(expected, seconds=0) and its_score == score
    assert torch.equal(weights(second), weights(undisturbed))
    assert [row["loss"] for row in rows(second)] == [row["loss"] for row in rows(undisturbed)]
    assert final.seconds > state.seconds


def test_a_stop_before_the_first_step_leaves_no_checkpoint(trainer):
    mine = trainer()
    state, score = mine.train(TrainState(), StopAt(1))
    assert (state, score) == (TrainState(), None)
    assert not mine.saver.folder.exists()


def test_at_the_end_there_is_nothing_left_to_do(trainer):
    mine = trainer()
    state, _ = mine.train(TrainState(), StopRequest())
    before = weights(mine)
    assert mine.train(state, StopRequest()) == (state, None)
    assert torch.equal(weights(mine), before)
    assert len(rows(mine)) == len(mine.steps)


# Losses and gradients that are not finite


def poison(trainer, steps: set[int], where: str, value: float = float("nan")) -> None:
    """Make loss or gradient of these steps (1-based) not finite, in the second micro-batch."""
    calls = itertools.count()
    firsts = np.cumsum([0, *(len(step.micro_batches) for step in trainer.steps)])
    bad = {int(firsts[number - 1]) + (len(trainer.steps[number - 1].micro_batches) > 1) for number in steps}
    current = None

    def count(*_):
        nonlocal current
        current = next(calls)

    def spoil(module, arguments, loss):
        return loss * value if current in bad else loss

    trainer.model.register_forward_pre_hook(count)
    if where == "loss":
        trainer.model.register_forward_hook(spoil)
    else:
        parameter = trainer.model.blocks[0].attention.out.weight
        parameter.register_hook(lambda gradient: gradient * value if current in bad else gradient)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_steps_are_skipped_counted_and_leave_no_trace(trainer, tmp_path, where, value):
    bad = {1, 4, 5, 9}
    mine, reference = trainer(), trainer(folder=tmp_path / "reference")
    began = weights(mine)
    poison(mine, bad, where, value)
    state, score = mine.train(TrainState(), StopRequest())
    assert state.bad_steps == len(bad) and state.bad_in_a_row == 0 and state.step == len(mine.steps)
    assert score is not None
    plain_training(reference, skipped=tuple(bad))
    assert (weights(mine) - weights(reference)).norm() < 1e-3 * (weights(reference) - began).norm()
    found = rows(mine)
    assert [row["step"] for row in found] == list(range(1, len(mine.steps) + 1))
    assert {row["step"] for row in found if row["loss"] is None or row["grad_norm"] is None} == bad
    assert {row["step"] for row in rows(mine, "event")} == bad
    assert found[-1]["tokens"] == sum(step.tokens for step in mine.steps)  # the data moves on


@pytest.mark.parametrize(("bad", "last"), [({1, 2, 3}, 3), ({2, 3, 5, 6, 7}, 7), ({10, 11, 12}, 12)])
def test_too_many_bad_steps_in_a_row_end_the_run(trainer, bad, last):
    mine = trainer(every=1)
    poison(mine, bad, "loss")
    with pytest.raises(UserError, match=rf"3 steps in a row, up to step {last};") as error:
        mine.train(TrainState(), StopRequest())
    assert "\n" not in str(error.value) and "optimizer.lr" in str(error.value)
    mine.saver.close()
    assert rows(mine)[-1]["step"] == last
    for path in checkpoint.checkpoints(mine.saver.folder):
        checkpoint.verify(path)
    saved = [int(path.name.removeprefix("step-")) for path in checkpoint.checkpoints(mine.saver.folder)]
    assert saved == [step for step in (last - 2, last - 1) if step > 0]


def test_bad_steps_in_a_row_are_counted_across_a_stop(trainer):
    first = trainer(micro_batch=10**6)
    poison(first, {3, 4}, "loss")
    state, _ = first.train(TrainState(), StopAt(5))
    assert (state.step, state.bad_steps, state.bad_in_a_row) == (4, 2, 2)
    second = trainer(micro_batch=10**6)
    poison(second, {1}, "loss")  # its first step is the plan's fifth
    with pytest.raises(UserError, match="3 steps in a row, up to step 5;"):
        second.train(
            checkpoint.load(second.saver.folder / "step-00000004", second.model, second.optimizers),
            StopRequest(),
        )


# Warming up


def test_warming_up_changes_nothing_but_the_clock(trainer, tmp_path):
    mine, reference = trainer(warm=True), trainer(folder=tmp_path / "reference")
    first_call = mine.model.register_forward_pre_hook(lambda *_: first_call.remove() or time.sleep(0.5))
    mine.train(TrainState(), StopRequest())
    reference.train(TrainState(), StopRequest())
    assert torch.equal(weights(mine), weights(reference))
    assert [row["loss"] for row in rows(mine)] == [row["loss"] for row in rows(reference)]
    assert rows(mine)[0]["seconds"] < 0.5 <= mine.warm_up_seconds
    shapes = {(step.seq_len, step.micro_batches) for step in mine.steps}
    assert f"{len(shapes)} shapes" in rows(mine, "event")[0]["message"]


def test_a_graph_made_after_the_warm_up_is_told(trainer, monkeypatch):
    graphs = iter([4, 4, 4, 5, *[5] * 100])
    monkeypatch.setattr("yxanul.training.loop.graphs_compiled", lambda: next(graphs))
    mine = trainer()
    mine.train(TrainState(), StopRequest())
    assert [row["message"].partition(" after")[0] for row in rows(mine, "event")] == ["torch.compile made a new graph"]


# Reading behind


def test_reading_a_step_behind_changes_nothing(trainer, tmp_path, monkeypatch):
    """As on a GPU: rows, evaluations, checkpoints and what is skipped are those of a loop that waits."""
    outcomes = []
    for lag in (0, 1):
        monkeypatch.setitem(loop.LAG, "cpu", lag)
        mine = trainer(evaluate_every=5, every=4, folder=tmp_path / str(lag))
        poison(mine, {2, 7}, "loss")
        state, score = mine.train(TrainState(), StopRequest())
        timed = ("seconds", "evaluation_seconds", "tokens_per_second", "bytes_per_second", "mfu", "memory_gb")
        found = [
            {name: value for name, value in row.items() if name not in timed}
            for row in read_rows(tmp_path / str(lag) / "metrics.jsonl")
        ]
        outcomes.append((replace(state, seconds=0), score, found, weights(mine).tolist()))
    assert outcomes[0] == outcomes[1]
