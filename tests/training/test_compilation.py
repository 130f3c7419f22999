"""Compiled layers against eager ones, and that no sequence length needs a graph of its own."""

from functools import partial

import pytest
import torch

from yxanul.model.attention import sdpa
from yxanul.model.transformer import Packed
from yxanul.training.compilation import compile_layers, graphs_compiled

STAGES = ((8, 24), (48, 4), (160, 1), (320, 1))
"""Sequence length and sequences: tiles that divide evenly or not, and long segments."""


def row(seq_len, sequences, vocab=61):
    tokens = torch.randint(vocab, (seq_len * sequences,), generator=torch.Generator().manual_seed(seq_len))
    starts = sorted({*range(0, len(tokens), seq_len), len(tokens) // 3})
    return Packed(tokens, torch.arange(len(tokens)) % seq_len, sdpa(starts, len(tokens), seq_len)), tokens.roll(-1)


def gradients(model, packed, targets):
    model.zero_grad()
    loss = model(packed, targets)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def assert_near(loss, expected_loss, found, expected):
    torch.testing.assert_close(loss, expected_loss)
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() < 1e-4 * other.norm()


@pytest.fixture
def traced(monkeypatch):
    """torch.compile with everything but the making of machine code, which takes most of its time."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize("recompute", [0.0, 0.5])
def test_every_length_after_the_warm_up_runs_in_the_graphs_that_are_there(traced, build_model, model_config, recompute):
    """Under a stance in which a further graph, or falling back to eager, is an error; in numbers like eager."""
    config = model_config(max_seq_len=320, num_layers=4)
    compiled, eager = build_model(config), build_model(config)
    for model in (compiled, eager):
        for index, block in enumerate(model.blocks):
            block.recompute = recompute > 0 and index % 2 == 1
    compile_layers(compiled)
    before = graphs_compiled()
    for stage in STAGES:
        gradients(compiled, *row(*stage))
    made = graphs_compiled() - before
    assert 0 < made <= 8, f"{made} graphs for {len(STAGES)} lengths and 4 layers"
    with torch.compiler.set_stance("fail_on_recompile"):
        for seq_len, sequences in (*STAGES, (8, 31), (48, 7), (160, 2), (16, 9), (200, 1)):
            packed, targets = row(seq_len, sequences)
            (loss, found), (expected_loss, expected) = (gradients(m, packed, targets) for m in (compiled, eager))
            assert_near(loss, expected_loss, found, expected)
    assert graphs_compiled() == before + made


@pytest.mark.slow
def test_machine_code_on_this_device_computes_the_same(build_model, model_config):
    torch._dynamo.reset()
    config = model_config(max_seq_len=320)
    compiled, eager = build_model(config), build_model(config)
    compile_layers(compiled)
    for stage in STAGES:
        (loss, found), (expected_loss, expected) = (gradients(m, *row(*stage)) for m in (compiled, eager))
        assert_near(loss, expected_loss, found, expected)
