"""Which parameter is under which optimizer, and that either of them trains the model."""

import pytest
import torch

from yxanul.config import FeedForward, MuonConfig, Norm, OptimizerConfig, Positions
from yxanul.model.attention import sdpa
from yxanul.model.transformer import Packed
from yxanul.optim.build import build_optimizers
from yxanul.optim.muon import Muon

GPT2 = {"norm": Norm.layernorm, "feed_forward": FeedForward.gelu, "positions": Positions.learned}
UNTIED = {"tied": False, "feed_forward": FeedForward.relu2}
VARIANTS = pytest.mark.parametrize(
    "variant", [{}, {"embedding_rank": 8}, GPT2, UNTIED], ids=["full", "rank", "gpt2", "untied"]
)
MUON = MuonConfig(lr=0.02, momentum=0.95, weight_decay=0.01, iterations=5)


def config(muon):
    return OptimizerConfig(lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, muon=muon)


def placed(model, optimizers):
    """Parameter name -> (its optimizer, its group); every parameter exactly once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    places = [
        (names[parameter], (optimizer, group))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert sorted(name for name, _ in places) == sorted(names.values())
    return dict(places)


@VARIANTS
@pytest.mark.parametrize("muon", [None, MUON])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(model_config, build_model, variant, muon):
    model = build_model(model_config(**variant))
    places = placed(model, build_optimizers(model, config(muon)))
    for name, parameter in model.named_parameters():
        optimizer, group = places[name]
        inside = parameter.ndim == 2 and any(parameter is p for p in model.blocks.parameters())
        if muon is not None and inside:
            assert isinstance(optimizer, Muon) and group["weight_decay"] == muon.weight_decay, name
        else:
            assert isinstance(optimizer, torch.optim.AdamW), name
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0), name
    assert not isinstance(places["embedding.table"][0], Muon)


@pytest.mark.parametrize("muon", [None, MUON])
def test_settings_arrive_and_scales_lead_from_the_planned_rate_to_each_peak(model_config, build_model, muon):
    *muons, adamw = build_optimizers(build_model(model_config()), config(muon))
    assert len(muons) == (muon is not None)
    for group in adamw.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.9, 0.95), 1e-8, 1e-2)
        assert group["lr_scale"] == 1.0
    for optimizer in muons:
        (group,) = optimizer.param_groups
        assert (group["momentum"], group["iterations"]) == (0.95, 5)
        assert 1e-2 * group["lr_scale"] == pytest.approx(group["lr"]) == pytest.approx(0.02)


@VARIANTS
@pytest.mark.parametrize("muon", [None, MUON])
def test_a_hundred_steps_learn_a_text_by_heart(model_config, build_model, variant, muon):
    """The loss on one repeated row falls by more than half , repeated a hundred times, more than halves."""
    model = build_model(model_config(**variant), init_std=0.1)
    tokens = torch.randint(61, (65,), generator=torch.Generator().manual_seed(0))
    where = sdpa([0], 64, 64)
    packed = Packed(tokens[:-1], torch.arange(64), where)
    optimizers = build_optimizers(model, config(muon))
    losses = []
    for _ in range(100):
        model.zero_grad()
        loss = model(packed, tokens[1:]) / 64
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
