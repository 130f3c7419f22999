"""What ran is seen where torch dispatches it, and FP8's effect on the numbers is measured."""

from dataclasses import replace

import pytest
import torch

from yxanul.config import Recipe
from yxanul.model.attention import sdpa
from yxanul.model.transformer import Packed, Transformer
from yxanul.precision.formats import Format, Scaling
from yxanul.precision.linear import build_precision
from yxanul.precision.observe import differences, observe, statistics
from yxanul.precision.plan import assign, fp8_layers, plan_products
from yxanul.precision.recipes import Role
from yxanul.training.compilation import compile_layers
from yxanul.training.step import Batch, add_gradient

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOKENS, VOCAB = 64, 1000


@pytest.fixture
def watched(precision_of, model_config, monkeypatch):
    """Builds a small model as planned and observes one forward and backward: (planned, observation, choice, model)."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    def make(name="fp8", device=CPU, spoil=lambda model: None, compiled=False, **changes):
        config, of_model = replace(precision_of(name), **changes), model_config(hidden_size=96, intermediate_size=128)
        precision = build_precision(config, device)
        planned = plan_products(config, precision, of_model, VOCAB, {8: TOKENS}, {8: 1000}, None)
        model = Transformer(of_model, VOCAB, precision.linear, precision.dtype)
        model.initialize(0.02, torch.Generator().manual_seed(0))
        assign(model, planned)
        model.to(device)
        if compiled:
            compile_layers(model)
        spoil(model)
        tokens = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(1))
        packed = Packed(tokens, torch.arange(TOKENS) % 8, sdpa(range(0, TOKENS, 8), TOKENS, 8))
        batch = Batch(packed, tokens.roll(-1), TOKENS).map(lambda tensor: tensor.to(device))
        seen = observe(model, lambda: add_gradient(model, batch, TOKENS), TOKENS, precision.fp8)
        return planned, seen, precision.fp8, model

    return make


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fp32", {}),
        ("bf16", {}),
        *[("fp8", {"recipe": recipe}) for recipe in (Recipe.tensorwise, Recipe.rowwise, Recipe.mxfp8)],
        ("fp8", {"recipe": Recipe.blockwise}),
        ("fp8", {"select": ("*.down", "*.qkv.weight_gradient")}),
        ("fp8", {"high_precision": ("blocks.0.*",)}),
    ],
)
def test_what_was_planned_is_seen(watched, name, changes):
    planned, seen, fp8, _ = watched(name, **changes)
    assert differences(planned, seen, fp8) == []
    assert sum(seen.products.values()) >= 3 * 4 * 2


def test_compiled_layers_are_seen_too(watched):
    planned, seen, fp8, _ = watched(compiled=True)
    assert differences(planned, seen, fp8) == []


def test_a_silent_fallback_is_told(watched):
    """A layer that does not do what the plan says, in one product or in all."""

    def stop_one(model):
        fp8_layers(model)["blocks.1.feed_forward.down"].use(frozenset({Role.forward, Role.data_gradient}))

    def stop_all(model):
        for layer in fp8_layers(model).values():
            layer.active = False

    planned, seen, fp8, _ = watched(spoil=stop_one)
    assert any("were planned, 1 ran" in line for line in differences(planned, seen, fp8))
    planned, seen, fp8, _ = watched(spoil=stop_all)
    lines = differences(planned, seen, fp8)
    assert any("planned in fp8 and ran in bf16" in line for line in lines) and len(lines) > 12


def test_an_unasked_fp8_product_is_told(watched):
    def start_one(model):
        fp8_layers(model)["blocks.0.attention.out"].use(frozenset(Role))

    planned, seen, fp8, _ = watched(select=("*.down",), spoil=start_one)
    assert differences(planned, seen, fp8)


def test_statistics_of_every_layer_in_fp8(watched):
    _, seen, _, model = watched(select=("*.down", "*.qkv"))
    assert set(seen.layers) == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("attention.qkv", "feed_forward.down")}
    for name, of_layer in seen.layers.items():
        assert set(of_layer) == {"input", "weight", "gradient"}
        weight = dict(model.named_parameters())[f"{name}.weight"]
        assert of_layer["weight"].amax == pytest.approx(weight.abs().max().item())
        for found in of_layer.values():
            assert found.saturated == 0 and 0 < found.error < 0.1 and found.flushed < 0.01


def test_looking_changes_nothing_but_gradients(watched):
    """Another look finds the same, and no hook is left."""
    _, _, _, model = watched()
    assert not any(layer._forward_hooks for layer in fp8_layers(model).values())


def figures(matrix, rows=None):
    """(amax, saturated, flushed, error) in E4M3, scaled as a whole or by so many rows."""
    return statistics(matrix, Format.e4m3, Scaling(rows, None)).tolist()


def test_what_is_representable_has_no_error():
    amax, *others = figures(torch.tensor([[448.0, -1.0, 0.0], [2.0, 0.25, 208.0]]))
    assert amax == 448 and others == [0, 0, 0]


def test_an_outlier_flushes_the_rest():
    """Of a tensor scaled by one outlier nearly all becomes zero, and the error says so; by rows only its own does."""
    matrix = torch.full((8, 64), 1e-3)
    matrix[0, 0] = 1e3
    _, saturated, *lost = figures(matrix)
    assert saturated == 0 and lost == pytest.approx([511 / 512] * 2)
    _, _, *lost = figures(matrix, rows=1)
    assert lost == pytest.approx([63 / 512] * 2)


def test_what_is_not_finite_counts_as_saturated():
    matrix = torch.ones(4, 8)
    matrix[1, 3] = torch.inf
    assert figures(matrix, rows=1)[1] == pytest.approx(1 / 32)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [Recipe.tensorwise, Recipe.rowwise, Recipe.blockwise])
def test_what_was_planned_runs_on_a_gpu(watched, recipe):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8 units")
    planned, seen, fp8, _ = watched(device=CUDA, recipe=recipe, select="all")
    if fp8 is None:
        pytest.skip("this recipe cannot run on this GPU")
    assert differences(planned, seen, fp8) == []
