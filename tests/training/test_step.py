"""An optimizer step from its pieces: data, gradient, update, and that nothing in it waits for the device."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from yxanul.config import MuonConfig, OptimizerConfig
from yxanul.curriculum import Step
from yxanul.data.stream import MicroBatch
from yxanul.model.attention import sdpa
from yxanul.optim.build import build_optimizers
from yxanul.training.step import Batch, add_gradient, feed, make_batch, update

OPTIMIZERS = {
    "adamw": OptimizerConfig(1e-2, 0.1, (0.9, 0.95), 1e-8, None),
    "muon": OptimizerConfig(1e-2, 0.1, (0.9, 0.95), 1e-8, MuonConfig(0.02, 0.95, 0.1, 5)),
}
STEP = Step(0, 0, 16, (2, 2), 0, 64, 1e-2, 1.0)


def micro_batch(step: Step = STEP, index: int = 0) -> MicroBatch:
    tokens = np.random.default_rng([step.index, index]).integers(0, 61, step.micro_batches[index] * step.seq_len + 1)
    return MicroBatch(tokens[:-1], tokens[1:], np.arange(32) % 16, np.array([0, 5, 16]), step.seq_len, bytes=7 + index)


class Numbers:
    """A stream of such micro-batches."""

    @staticmethod
    def micro_batch(step: Step, index: int, rank: int) -> MicroBatch:
        return micro_batch(step, index)


def state_of(optimizers) -> list[torch.Tensor]:
    return [tensor.clone() for each in optimizers for held in each.state.values() for tensor in held.values()]


def test_what_is_fed_is_the_stream_in_order_with_its_layout():
    places = [(STEP, 0), (STEP, 1), (STEP, 0)]
    fed = list(feed(Numbers(), lambda seq_len: sdpa, places, torch.device("cpu")))
    assert [batch.bytes for batch in fed] == [7, 8, 7]
    for batch, place in zip(fed, places, strict=True):
        expected = micro_batch(*place)
        assert batch.targets.tolist() == expected.targets.tolist()
        assert batch.packed.tokens.tolist() == expected.tokens.tolist()
        assert torch.equal(batch.packed.layout.mask, sdpa([0, 5, 16], 32, 16).mask)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("bad", ["nats", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(build_model, model_config, optimizer, bad):
    """Neither weights nor moments nor their counts; and the next step is as if it had never been."""
    outcomes = []
    for disturbed in (False, True):
        model = build_model(model_config())
        optimizers = build_optimizers(model, optimizer)
        add_gradient(model, make_batch(micro_batch(), sdpa), 32)
        update(model, optimizers, STEP, torch.tensor(3.0), 0)
        if disturbed:
            before = [parameter.clone() for parameter in model.parameters()] + state_of(optimizers)
            if bad == "gradient":
                next(model.blocks[0].parameters()).grad.fill_(torch.inf)
            found = update(model, optimizers, STEP, torch.tensor(torch.nan if bad == "nats" else 3.0), 0)
            assert not all(np.isfinite(found.read()))
            after = [*model.parameters(), *state_of(optimizers)]
            assert all(torch.equal(first, second) for first, second in zip(before, after, strict=True))
        model.zero_grad()
        add_gradient(model, make_batch(micro_batch(index=1), sdpa), 32)
        update(model, optimizers, STEP, torch.tensor(3.0), 0)
        outcomes.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*outcomes)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_never_asks_the_device_for_a_value(build_model, model_config, optimizer):
    """Fake tensors have shapes and no values: whatever would wait for one, to decide or to print, raises."""
    batch = make_batch(micro_batch(), sdpa)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = build_model(model_config())
        optimizers = build_optimizers(model, optimizer)
        fake = Batch.map(batch, mode.from_tensor)
        nats = add_gradient(model, fake, 64) + add_gradient(model, fake, 64)
        found = update(model, optimizers, STEP, nats, 0)
        with pytest.raises(DataDependentOutputException):
            found.read()


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_on_cuda_never_waits(build_model, model_config, optimizer):
    device = torch.device("cuda")
    model = build_model(model_config()).to(device)
    optimizers = build_optimizers(model, optimizer)
    fed = feed(Numbers(), lambda seq_len: sdpa, [(STEP, 0), (STEP, 1)] * 2, device)
    for _ in range(2):  # the first allocates
        torch.cuda.set_sync_debug_mode("error")
        try:
            nats = add_gradient(model, next(fed), 64) + add_gradient(model, next(fed), 64)
            found = update(model, optimizers, STEP, nats, 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(np.isfinite(found.read()))
