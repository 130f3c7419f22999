"""The precision plan: every product, its format and reason."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from yxanul.config import Backend, Recipe
from yxanul.model.count import training_flops_per_token
from yxanul.precision.linear import build_precision
from yxanul.precision.plan import assign, fp8_layers, plan_products, time_left, totals
from yxanul.precision.recipes import Role

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROWS, TOKENS = {8: 1024, 512: 1536}, {8: 100_000, 512: 300_000}
VOCAB = 1000
HERE = pytest.mark.skipif(torch.cuda.is_available(), reason="plans for a GPU that is not here")


@pytest.fixture
def planned(precision_of, model_config, monkeypatch):
    """Plans a small model in FP8: `planned(device, timer, model changes, **precision changes)`."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    def make(device=CPU, timer=None, model=None, name="fp8", capability=9.0, **changes):
        config = replace(precision_of(name), **changes)
        wide = {"hidden_size": 128, "num_layers": 4, "intermediate_size": 256, "num_heads": 4}
        precision = build_precision(config, device, capability)
        return plan_products(config, precision, model_config(**wide | (model or {})), VOCAB, ROWS, TOKENS, timer)

    return make


def formats(products):
    """(layer, role) -> format of the products inside the layers."""
    return {(each.name, each.role): each.format for each in products if each.name.startswith("blocks.")}


def test_all_work_of_the_run_is_planned(planned, model_config):
    """Shares add up to 1, and attention's, which is what the others leave, is what attention takes."""
    products = planned(model={"embedding_rank": 16})
    assert sum(each.share for each in products) == pytest.approx(1)
    assert sum(totals(products).values()) == pytest.approx(1)
    model = model_config(hidden_size=128, num_layers=4, intermediate_size=256, num_heads=4, embedding_rank=16)
    total = sum(count * training_flops_per_token(model, VOCAB, length) for length, count in TOKENS.items())
    attention = sum(count * 6 * 4 * 2 * 128 * (length + 1) / 2 for length, count in TOKENS.items()) / total
    assert products[-1].name == "attention" and products[-1].share == pytest.approx(attention)
    assert {each.name for each in products if "blocks" not in each.name} == {
        "head",
        "embedding",
        "head projection",
        "attention",
    }


def test_each_matrix_has_three_products_with_its_shape(planned):
    products = [each for each in planned() if each.name.startswith("blocks.")]
    assert Counter(each.role for each in products) == {role.value: 16 for role in Role}
    shapes = {each.name.removeprefix("blocks.2."): (each.n, each.k) for each in products if "blocks.2" in each.name}
    assert shapes == {
        "attention.qkv": (256, 128),
        "attention.out": (128, 128),
        "feed_forward.gate_up": (512, 128),
        "feed_forward.down": (128, 256),
    }
    assert {each.m for each in products} == {(1024, 1536)}


def test_outside_the_layers_nothing_is_in_fp8(planned):
    outside = [each for each in planned(select="all") if not each.name.startswith("blocks.")]
    assert {each.format for each in outside} == {"bf16"} and all(each.reason for each in outside)
    assert set(formats(planned(select="all")).values()) == {"fp8"}


@HERE
def test_timed_keeps_what_is_faster_at_every_stage(planned):
    """A product that wins at one length and loses at another stays in bf16."""

    def timer(role, m, n, k):
        return {Role.forward: 1.3, Role.data_gradient: 0.9, Role.weight_gradient: 1.2 if m == 1024 else 0.8}[role]

    products = planned(CUDA, timer)
    for (_, role), format_ in formats(products).items():
        assert format_ == ("fp8" if role == "forward" else "bf16")
    assert {"1.30 times as fast in fp8 when timed", "0.90 times as fast in fp8 when timed"} < {
        each.reason for each in products
    }
    in_fp8 = totals(products)["fp8"]
    assert time_left(products) == pytest.approx(1 - in_fp8 + in_fp8 / 1.3)


@HERE
def test_untimed_gains_are_not_assumed(planned):
    products = planned(CUDA)
    assert totals(products)["fp8"] > 0.3 and time_left(products) == pytest.approx(1)
    assert {each.reason for each in products if each.format == "fp8"} == {"if it is faster when timed on the device"}


def test_emulation_is_not_timed(planned):
    def never(*shape):
        raise AssertionError("timed")

    assert set(formats(planned(timer=never)).values()) == {"fp8"}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.down"], {("feed_forward.down", role.value) for role in Role}),
        (["*.qkv.forward", "*.data_gradient"], None),
        (["blocks.-1.*"], "last"),
    ],
)
def test_select_by_patterns(planned, patterns, expected):
    chosen = {each for each, format_ in formats(planned(select=patterns)).items() if format_ == "fp8"}
    if expected == "last":
        assert {name.split(".")[1] for name, _ in chosen} == {"3"} and len(chosen) == 12
    elif expected is None:
        assert all(role == "data gradient" or (name.endswith("qkv") and role == "forward") for name, role in chosen)
        assert len(chosen) == 4 + 16
    else:
        assert {(name.split(".", 2)[2], role) for name, role in chosen} == expected and len(chosen) == 12


def test_first_and_last_layers_can_be_kept_in_high_precision(planned):
    found = formats(planned(high_precision=["blocks.0.*", "blocks.-1.*"]))
    assert {name.split(".")[1] for (name, _), format_ in found.items() if format_ == "fp8"} == {"1", "2"}


def test_products_that_alignment_would_swell_stay_in_bf16(planned):
    """Squares of 128 make a matrix of 64 by 32 eight times as large; strips over the tokens and whole tensors fit."""
    small = {"hidden_size": 32, "intermediate_size": 48}
    in_blocks = planned(model=small, recipe=Recipe.blockwise)
    for (_, role), format_ in formats(in_blocks).items():
        assert format_ == ("fp8" if role == "weight gradient" else "bf16")
    swollen = [each for each in in_blocks if each.name.startswith("blocks.") and each.format == "bf16"]
    assert swollen and all("times as large" in each.reason for each in swollen)
    assert set(formats(planned(model=small, recipe=Recipe.tensorwise)).values()) == {"fp8"}


@HERE
def test_transformer_engine_takes_all_three_or_none(planned):
    products = planned(CUDA, lambda role, m, n, k: 1.1 if n == 512 else 0.9, backend=Backend.te, capability=8.9)
    assert {name.split(".", 2)[2] for (name, _), each in formats(products).items() if each == "fp8"} == {
        "feed_forward.gate_up"
    }
    selected = planned(CUDA, backend=Backend.te, select=["*.forward"])
    assert set(formats(selected).values()) == {"bf16"}


@HERE
def test_transformer_engine_pads_no_weights(planned):
    """24 is no multiple of 16, and twice 24 is one."""
    products = planned(CUDA, backend=Backend.te, select="all", model={"intermediate_size": 24})
    in_fp8 = {name.split(".", 2)[2] for (name, _), each in formats(products).items() if each == "fp8"}
    assert in_fp8 == {"attention.qkv", "attention.out", "feed_forward.gate_up"}
    assert any(each.reason.endswith("Transformer Engine needs sizes that are multiples of 16") for each in products)


def test_without_fp8_the_reason_is_given(planned):
    assert totals(planned(name="bf16")) == {"bf16": pytest.approx(1)}
    lost = planned(CUDA, capability=8.0)
    assert {each.reason for each in lost if each.name.startswith("blocks.")} == {
        "compute capability 8.0 has no FP8 units (8.9 has)"
    }


def test_the_model_is_told_product_by_product(planned, model_config, precision_of):
    from yxanul.model.transformer import Transformer

    precision = build_precision(precision_of("fp8"), CPU)
    model = Transformer(
        model_config(hidden_size=128, num_layers=4, intermediate_size=256), VOCAB, precision.linear, precision.dtype
    )
    assign(model, planned(select=["blocks.1.*.forward", "blocks.3.attention.out"]))
    for name, layer in fp8_layers(model).items():
        if name.startswith("blocks.1."):
            assert layer.roles == {Role.forward}
        else:
            assert layer.roles == (frozenset(Role) if name == "blocks.3.attention.out" else frozenset())


def test_flops_are_counted_twice_a_multiply_add(planned):
    """A product's share against the arithmetic of a single layer's matrix."""
    products = planned()
    down, head = (next(each for each in products if name in each.name) for name in ("feed_forward.down", "head"))
    assert head.share / down.share == pytest.approx(3 * math.ceil(VOCAB / 64) * 64 * 128 / (128 * 256))
