"""Memory that runs out in training: smaller micro-batches, or a line that says what to do."""

from dataclasses import replace

import pytest
import torch

from yxanul.errors import UserError
from yxanul.training import checkpoint, loop
from yxanul.training.checkpoint import TrainState
from yxanul.training.distributed import World
from yxanul.training.signals import StopRequest

from .trained import rows, weights


def exhaust(trainer, most: int) -> list[int]:
    """Make the model run out of memory with more than `most` tokens at once; returns what it was given, in order."""
    seen = []

    def refuse(module, arguments):
        seen.append(len(arguments[1]))
        if len(arguments[1]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.model.register_forward_pre_hook(refuse)
    return seen


@pytest.mark.parametrize("most", [32, 40, 64])
@pytest.mark.parametrize("warm", [False, True])
def test_out_of_memory_means_smaller_micro_batches_and_the_same_mathematics(trainer, tmp_path, most, warm):
    """The steps that fit stay as they were; in the warm-up as in the steps themselves."""
    mine, reference = trainer(10**6, warm=warm), trainer(10**6, folder=tmp_path / "reference")
    planned = mine.steps
    began = weights(mine)
    seen = exhaust(mine, most)
    state, _ = mine.train(TrainState(), StopRequest())
    expected, _ = reference.train(TrainState(), StopRequest())
    assert state.losses == pytest.approx(expected.losses)
    assert replace(state, seconds=0, losses=[]) == replace(expected, seconds=0, losses=[])
    assert [row["loss"] for row in rows(mine)] == pytest.approx([row["loss"] for row in rows(reference)], rel=1e-5)
    assert (weights(mine) - weights(reference)).norm() < 1e-3 * (weights(reference) - began).norm()
    messages = [row["message"] for row in rows(mine, "event")]
    halvings = [message for message in messages if "out of memory" in message]
    refused = [tokens for tokens in seen if tokens > most]
    assert len(halvings) == len(refused) > 0
    assert f"{refused[0]} tokens a micro-batch" in halvings[0]
    for before, after in zip(planned, mine.steps, strict=True):
        assert replace(after, micro_batches=()) == replace(before, micro_batches=())
        assert sum(after.micro_batches) == sum(before.micro_batches)
        assert max(after.micro_batches) * after.seq_len <= most


def test_one_sequence_that_does_not_fit_ends_the_run_in_a_line(trainer):
    mine = trainer()
    exhaust(mine, 20)  # the last stage has sequences of 32
    with pytest.raises(UserError, match=r"out of memory at step \d+ with a single sequence of 32 tokens") as error:
        mine.train(TrainState(), StopRequest())
    assert "\n" not in str(error.value)
    assert rows(mine)[-1]["kind"] == "train"


class OfTwo(World):
    """One of two processes, without the other."""

    def largest(self, number):
        return number


def test_a_process_of_several_that_runs_out_of_memory_ends_the_run_with_advice(trainer, monkeypatch):
    """The others may be waiting for its gradients already, so there is no second attempt."""
    monkeypatch.setattr(loop, "accumulating", lambda model, world: lambda last: model)
    monkeypatch.setattr(checkpoint.dist, "new_group", lambda **_: None)
    mine = trainer(world=OfTwo(1, 1, 2))
    exhaust(mine, 10)
    with pytest.raises(UserError, match=r"on process 1 at step 1 with 4 sequences of 4 .* hardware.micro_batch.4=2"):
        mine.train(TrainState(), StopRequest())
