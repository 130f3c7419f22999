"""FP8 over a run: its beginning, what is looked at and when, and layers that leave it."""

from dataclasses import replace

import pytest
import torch

from yxanul.config import Fallback, Recipe
from yxanul.curriculum import Step
from yxanul.errors import UserError
from yxanul.model.attention import sdpa
from yxanul.model.transformer import Packed, Transformer
from yxanul.precision.linear import build_precision
from yxanul.precision.plan import assign, fp8_layers, plan_products
from yxanul.precision.recipes import Role
from yxanul.training.step import Batch, add_gradient
from yxanul.training.watch import LOOK_TOKENS, Watch

CPU = torch.device("cpu")
STEP = Step(0, 0, 16, (512, 512), 0, 2 * 512 * 16, 1e-3, 1.0)


@pytest.fixture
def watch(precision_of, model_config, monkeypatch):
    """Builds a watch over a small model: `watch(name, **precision changes)`."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    def make(name="fp8", **changes):
        config, of_model = replace(precision_of(name), **changes), model_config()
        precision = build_precision(config, CPU)
        planned = plan_products(config, precision, of_model, 61, {16: 8192}, {16: 10_000}, None)
        model = Transformer(of_model, 61, precision.linear, precision.dtype)
        model.initialize(0.1, torch.Generator().manual_seed(0))
        assign(model, planned)
        return Watch(model, config, planned, precision.fp8)

    return make


def forward_backward(watch, seen=None, spoil=lambda: None):
    """What the watch is given to run; notes the steps it was run for."""

    def run(step):
        if seen is not None:
            seen.append(step)
        tokens = step.micro_batches[0] * step.seq_len
        ids = torch.randint(61, (tokens,), generator=torch.Generator().manual_seed(0))
        layout = sdpa(range(0, tokens, step.seq_len), tokens, step.seq_len)
        spoil()
        add_gradient(watch.model, Batch(Packed(ids, torch.arange(tokens) % step.seq_len, layout), ids, tokens), tokens)

    return run


def at(index):
    return replace(STEP, index=index)


def messages(rows):
    return [row["message"] for row in rows if row["kind"] == "event"]


def test_fp8_begins_at_its_step(watch):
    watched = watch(start_step=3)
    for index, active in ((0, False), (2, False), (3, True), (9, True)):
        watched.begin(index)
        assert {layer.active for layer in fp8_layers(watched.model).values()} == {active}
    assert watched.phases(0) == [0, 3] and watched.phases(3) == [3]
    assert watch("bf16", start_step=3).phases(0) == [0]


def test_weights_may_be_quantized_once_a_step(watch):
    """A look between two steps sees new weights, and must not take the last step's."""
    watched = watch()
    (layer, *_) = fp8_layers(watched.model).values()
    seen = []
    for step in range(2):
        watched.begin(step)
        seen.append(layer.first_micro_batch)
        for index in range(3):
            watched.micro_batch(index)
            seen.append(layer.first_micro_batch)
    assert seen == [None, True, False, False] * 2


def test_delayed_scaling_is_never_looked_at(watch):
    watched = watch()
    watched.fp8 = replace(watched.fp8, recipe=Recipe.delayed)
    assert not any(watched.due(index) for index in range(201))


def test_looks_are_due_at_each_beginning_and_regularly_in_fp8(watch):
    watched = watch(start_step=3, watch_every=4)
    due = []
    for index in range(13):
        watched.begin(index)
        if watched.due(index):
            due.append(index)
            watched.look(at(index), forward_backward(watched))
    assert due == [0, 3, 4, 8, 12]
    plain = watch("bf16", watch_every=4)
    plain.look(at(0), forward_backward(plain))
    assert not any(plain.due(index) for index in range(1, 13))


def test_a_look_takes_few_tokens_and_leaves_no_gradient(watch):
    watched, seen = watch(), []
    rows, left = watched.look(STEP, forward_backward(watched, seen))
    assert [step.micro_batches for step in seen] == [(LOOK_TOKENS // 16,)]
    assert all(parameter.grad is None for parameter in watched.model.parameters())
    assert messages(rows) == ["precision as planned: 24 of 24 products in the layers ran in emulated fp8 (tensorwise)"]
    assert left == []


def test_figures_of_every_layer_are_recorded(watch):
    watched = watch(watch_every=5)
    rows, _ = watched.look(at(5), forward_backward(watched))
    (row,) = [row for row in rows if row["kind"] == "precision"]
    assert row["step"] == 6
    names = {name for name in row if "/" in name}
    assert len(names) == 2 * 4 * 3 * 4 and "blocks.1.feed_forward.down/gradient/amax" in names
    assert all(isinstance(row[name], float) for name in names)
    rows, _ = watched.look(at(6), forward_backward(watched))
    assert rows == []


def test_a_run_without_fp8_that_is_as_planned_has_no_row(watch):
    plain = watch("bf16")
    assert plain.look(STEP, forward_backward(plain)) == ([], [])


@pytest.mark.parametrize("fallback", Fallback)
def test_what_is_not_as_planned_is_told_or_ends_the_run(watch, fallback):
    watched = watch()
    watched.config = replace(watched.config, fallback=fallback)

    def spoil():
        fp8_layers(watched.model)["blocks.0.attention.out"].use(frozenset({Role.forward}))

    if fallback is Fallback.error:
        with pytest.raises(UserError, match=r"precision.fallback=error: .* were planned"):
            watched.look(STEP, forward_backward(watched, spoil=spoil))
    else:
        rows, _ = watched.look(STEP, forward_backward(watched, spoil=spoil))
        assert messages(rows)[0].startswith("precision is NOT as planned: ")


def test_a_layer_beyond_the_bounds_leaves_fp8(watch):
    """One whose weight holds an outlier: scaled by it, nearly all others become zero."""
    watched = watch(watch_every=1, max_error=0.5)
    name = "blocks.1.feed_forward.gate_up"
    with torch.no_grad():
        fp8_layers(watched.model)[name].weight.div_(1e6)[0, 0] = 1.0
    rows, left = watched.look(STEP, forward_backward(watched))
    assert name in left and f"{name} leaves fp8: its weight is quantized with an error" in " ".join(messages(rows))
    assert fp8_layers(watched.model)[name].roles == frozenset()
    rows, left = watched.look(at(1), forward_backward(watched))
    assert name not in left and not any("NOT" in message for message in messages(rows)), "the plan knows"


def test_saturation_makes_a_layer_leave(watch):
    watched = watch(watch_every=1)
    name = "blocks.0.feed_forward.down"
    with torch.no_grad():
        fp8_layers(watched.model)[name].weight[0] = torch.inf
    rows, left = watched.look(STEP, forward_backward(watched))
    assert name in left and any("of its weight is saturated" in message for message in messages(rows))


@pytest.mark.parametrize("units", [True, False])
def test_layers_that_left_before_a_restart_stay_out(watch, monkeypatch, units):
    """Also on a CPU without bf16 units, where they compute in float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units})
    watched = watch()
    watched.leave_fp8(["blocks.0.attention.qkv", "blocks.1.feed_forward.down"])
    rows, _ = watched.look(STEP, forward_backward(watched))
    assert messages(rows) == ["precision as planned: 18 of 24 products in the layers ran in emulated fp8 (tensorwise)"]
