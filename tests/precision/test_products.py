"""FP8 products of a linear layer: each operand in its recipe's format and blocks, errors that follow from both, and
nothing else changed; against float64, torch's own products and torchao."""

import dataclasses
import itertools
from functools import partial

import pytest
import torch
from packaging.version import Version
from torch import nn

from yxanul.config import Backend, Recipe
from yxanul.precision.linear import BF16Linear
from yxanul.precision.products import Fp8Linear, emulated, products, scaled_mm
from yxanul.precision.recipes import Role
from yxanul.precision.support import machine, why_not

BF16 = torch.bfloat16
RECIPES = [Recipe.tensorwise, Recipe.rowwise, Recipe.blockwise, Recipe.mxfp8]
E4M3, E5M2 = (448.0, 2.0**-4, 2.0**-9), (57344.0, 2.0**-3, 2.0**-16)
"""The largest number, the rounding of normal ones, and the spacing of subnormal ones (arXiv 2209.05433)."""


def expected_operand(recipe, role, side):
    """Rows and columns of the block that shares a scale (0 for all of them), and the format; as published."""
    if recipe is Recipe.tensorwise:
        return 0, 0, E5M2 if side == "left" and role is not Role.forward else E4M3
    if recipe is Recipe.blockwise and side == "right" and role is not Role.weight_gradient:
        return 128, 128, E4M3
    return 1, {Recipe.rowwise: 0, Recipe.blockwise: 128, Recipe.mxfp8: 32}[recipe], E4M3


def blocks(shape, rows, columns):
    """The slices of each block that shares a scale."""
    rows, columns = rows or shape[0], columns or shape[1]
    for top, left in itertools.product(range(0, shape[0], rows), range(0, shape[1], columns)):
        yield slice(top, top + rows), slice(left, left + columns)


def largest_error(matrix, rows, columns, of_format, power_of_two):
    """What each value of an operand may be off by once it is in FP8; powers of two are up to twice the scale."""
    largest, rounding, spacing = of_format
    scales = torch.empty_like(matrix)
    for block in blocks(matrix.shape, rows, columns):
        scales[block] = matrix[block].abs().max() / largest * (2 if power_of_two else 1)
    return torch.maximum(rounding * matrix.abs(), spacing / 2 * scales)


def layer_of(weight, recipe, power_of_two=False, dtype=torch.float32, multiply=emulated):
    layer = Fp8Linear(*reversed(weight.shape), partial(products, multiply, recipe, power_of_two, dtype=dtype))
    with torch.no_grad():
        layer.to(weight.device).weight.copy_(weight)
    return layer


def results(layer, x, upstream):
    """Output, and gradients of the input and of each weight."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    out.backward(upstream.to(out.dtype))
    return out.detach(), x.grad, *(weight.grad for weight in layer.parameters())


def inputs(tokens, outputs, columns, magnitudes=0.0, device="cpu"):
    """(x, weight, upstream), normal times powers of ten up to `magnitudes` either way."""
    generator = torch.Generator().manual_seed(tokens + outputs + columns)
    shapes = (tokens, columns), (outputs, columns), (tokens, outputs)
    powers = [torch.empty(shape).uniform_(-magnitudes, magnitudes, generator=generator) for shape in shapes]
    return [(torch.randn(each.shape, generator=generator) * 10**each).to(device) for each in powers]


def factors(x, weight, upstream):
    """Of each product left and right, float64, so that it is left @ right.T."""
    x, weight, upstream = x.double(), weight.double(), upstream.double()
    return dict(zip(Role, [(x, weight), (upstream, weight.T), (upstream.T, x.T)], strict=True))


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def seen(matrix, recipe, role, side, power_of_two):
    """What a product makes of an operand: the other one is the identity, which FP8 represents."""
    eye = torch.eye(len(matrix))
    left, right = (matrix, eye) if side == "left" else (eye, matrix)
    x, weight, upstream = {
        Role.forward: (left, right, eye),
        Role.data_gradient: (eye, right.T, left),
        Role.weight_gradient: (right.T, eye, left.T),
    }[role]
    found = results(layer_of(weight, recipe, power_of_two), x, upstream)[list(Role).index(role)]
    return found if side == "left" else found.T


every_operand = pytest.mark.parametrize(
    ("recipe", "role", "side", "power_of_two"), [*itertools.product(RECIPES, Role, ("left", "right"), (False, True))]
)


@every_operand
def test_operands_are_in_their_format(recipe, role, side, power_of_two):
    """Errors reach what its rounding allows, which is more than one more bit would."""
    matrix = torch.rand(160, 160, generator=torch.Generator().manual_seed(0)) + 0.5
    _, rounding, _ = expected_operand(recipe, role, side)[2]
    worst = ((seen(matrix, recipe, role, side, power_of_two) - matrix).abs() / matrix).max()
    assert rounding / 2 < worst <= rounding * (1 + 2**-18)


@every_operand
def test_operands_are_scaled_in_their_blocks(recipe, role, side, power_of_two):
    """A number so large that all others of its block are lost beside it shows how far the block goes."""
    matrix = torch.ones(160, 160)
    matrix[40, 70] = 2.0**40
    lost = torch.zeros(160, 160, dtype=torch.bool)
    for block in blocks(matrix.shape, *expected_operand(recipe, role, side)[:2]):
        lost[block] = matrix[block].max() > 1
    lost[40, 70] = False
    assert seen(matrix, recipe, role, side, power_of_two).eq(0).equal(lost)


SHAPES = [(8, 48, 80), (1, 1, 1), (100, 136, 200), (130, 40, 300), (128, 256, 128)]
"""Tokens, outputs and inputs; most are multiples of neither 16 nor a block."""


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_products_are_off_by_what_their_operands_are(recipe, power_of_two, shape, dtype):
    """If left and right are off by up to a and b, so is the product by |left| b + a |right| + a b; sums in float32 and
    the result's dtype add their rounding. Magnitudes of products range from 1e-6 to 1e6."""
    tensors = inputs(*shape, magnitudes=3)
    tensors[2] = tensors[2].to(dtype)
    twice = power_of_two or recipe is Recipe.mxfp8
    found = results(layer_of(tensors[1], recipe, power_of_two, dtype), tensors[0], tensors[2])
    for (role, (left, right)), product in zip(factors(*tensors).items(), found, strict=True):
        a = largest_error(left, *expected_operand(recipe, role, "left"), twice)
        b = largest_error(right, *expected_operand(recipe, role, "right"), twice)
        bound = (left.abs() + a) @ (right.abs() + b).T * (1 + left.size(1) * 2**-22) - left.abs() @ right.abs().T
        exact = left @ right.T
        bound += torch.finfo(dtype).eps / 2 * (exact.abs() + bound)
        assert ((product.double() - exact).abs() <= bound).all(), role


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("x_dtype", [torch.float32, BF16])
def test_gradients_have_the_dtype_of_what_they_are_of(recipe, x_dtype):
    """Float32 for weights, so that they add up over micro-batches."""
    x, weight, upstream = inputs(8, 24, 40)
    out, of_x, of_weight = results(layer_of(weight, recipe, dtype=BF16), x.to(x_dtype), upstream)
    assert (out.dtype, of_x.dtype, of_weight.dtype) == (BF16, x_dtype, torch.float32)


def plain_results(x, weight, upstream):
    plain = BF16Linear(*reversed(weight.shape), bias=False)
    plain.load_state_dict({"weight": weight})
    return results(plain, x, upstream)


@pytest.mark.parametrize("roles", [set(roles) for n in range(4) for roles in itertools.combinations(Role, n)])
def test_each_product_is_switched_by_itself(roles):
    """To the bit: in FP8 it is as in a layer all in FP8, and otherwise as in a bf16 layer."""
    x, weight, upstream = inputs(24, 40, 56)
    layer = layer_of(weight, Recipe.rowwise, dtype=BF16)
    fp8 = results(layer, x, upstream)
    layer.use(frozenset(roles))
    found, plain = results(layer, x, upstream), plain_results(x, weight, upstream)
    for role, product, as_fp8, as_plain in zip(Role, found, fp8, plain, strict=True):
        assert product.equal(as_fp8 if role in roles else as_plain), role
        assert not as_fp8.equal(as_plain)


def test_an_inactive_layer_is_a_plain_one_until_its_time():
    x, weight, upstream = inputs(24, 40, 56)
    layer = layer_of(weight, Recipe.tensorwise, dtype=BF16)
    fp8, plain = results(layer, x, upstream), plain_results(x, weight, upstream)
    for active, expected in ((False, plain), (True, fp8)):
        layer.active = active
        assert all(a.equal(b) for a, b in zip(results(layer, x, upstream), expected, strict=True))


def test_backends_get_what_a_gpu_can_multiply():
    """Sums and columns in 16s, whole blocks, and strips in 4s, in a shape of no multiples; zeros are added, and cut off
    again."""
    shapes = []

    def recorded(left, right, dtype):
        shapes.append((left.codes.shape, right.codes.shape))
        for operand in (left, right):
            whole = operand.codes.shape
            rows, columns = operand.scaling.rows or whole[0], operand.scaling.columns or whole[1]
            assert operand.codes.size(0) % rows == operand.codes.size(1) % columns == 0
            assert rows > 1 or not operand.scaling.columns or operand.codes.size(0) % 4 == 0
        return emulated(left, right, dtype)

    for recipe in RECIPES:
        x, weight, upstream = inputs(9, 21, 35)
        found = results(layer_of(weight, recipe, multiply=recorded), x, upstream)
        assert [tuple(each.shape) for each in found] == [(9, 21), (9, 35), (21, 35)]
    assert all(left[1] == right[1] and right[0] % 16 == right[1] % 16 == 0 for left, right in shapes)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("operand", [0, 1, 2])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_not_hidden(recipe, operand, value):
    """Wherever exact products are not finite, FP8's are not either."""
    tensors = inputs(24, 40, 56)
    tensors[operand][3, 5] = value
    found = results(layer_of(tensors[1], recipe), tensors[0], tensors[2])
    for product, (left, right) in zip(found, factors(*tensors).values(), strict=True):
        hidden = product.isfinite() & ~(left @ right.T).isfinite()
        assert not hidden.any()


ON_CPU = [pytest.param("cpu", recipe) for recipe in (Recipe.tensorwise, Recipe.rowwise)]
ON_CUDA = [pytest.param("cuda", recipe, marks=pytest.mark.gpu) for recipe in RECIPES[:3]]


def scaled_mm_layer(weight, recipe, power_of_two=False):
    """In bf16; skips where torch has no such product."""
    if weight.is_cuda and (reason := why_not(Backend.scaled_mm, recipe, machine(weight.device))):
        pytest.skip(reason)
    if not weight.is_cuda and Version(torch.__version__) < Version("2.13"):
        pytest.skip(f"torch {torch.__version__} has no FP8 product on a CPU")
    return layer_of(weight, recipe, power_of_two, BF16, scaled_mm)


@pytest.mark.parametrize(("device", "recipe"), ON_CPU + ON_CUDA)
@pytest.mark.parametrize("power_of_two", [False, True])
def test_scaled_mm_is_what_is_emulated(device, recipe, power_of_two):
    """Up to the rounding of both results, and of sums: Hopper's FP8 units add up with 14 bits (arXiv 2412.19437)."""
    shape = (2048, 3072, 768) if device == "cuda" else (40, 72, 56)
    x, weight, upstream = inputs(*shape, device=device)
    upstream = upstream.to(BF16)
    found = results(scaled_mm_layer(weight, recipe, power_of_two), x, upstream)
    expected = results(layer_of(weight, recipe, power_of_two, BF16), x, upstream)
    sums = 2.0**-11 if device == "cuda" else 2.0**-20
    for product, as_emulated, (left, right) in zip(found, expected, factors(x, weight, upstream).values(), strict=True):
        bound = 2.0**-7 * as_emulated.abs() + sums * (left.abs() @ right.abs().T)
        assert ((product - as_emulated).abs() <= bound).all()


@pytest.mark.parametrize("recipe", [Recipe.tensorwise, Recipe.rowwise])
def test_torchao_finds_the_same(recipe):
    """An implementation of others: with scales of the same kind, far nearer than either is to the exact product."""
    float8 = pytest.importorskip("torchao.float8")
    config = dataclasses.replace(float8.Float8LinearConfig.from_recipe_name(recipe.value), emulate=True)
    x, weight, upstream = inputs(64, 80, 96)
    linear = nn.Linear(96, 80, bias=False)
    linear.load_state_dict({"weight": weight})
    theirs = results(float8.float8_linear.Float8Linear.from_float(linear, config), x, upstream)
    layers = [layer_of(weight, recipe, power_of_two) for power_of_two in (False, True)]
    as_theirs = results(layers[config.round_scales_to_power_of_2], x, upstream)
    otherwise = results(layers[not config.round_scales_to_power_of_2], x, upstream)
    exact = [left @ right.T for left, right in factors(x, weight, upstream).values()]
    for their, same, other, product in zip(theirs, as_theirs, otherwise, exact, strict=True):
        error = relative_error(their, product)
        assert relative_error(same, their.double()) < error / 100
        assert 1 / 1.5 < relative_error(other, product) / error < 1.5


SLOW = [pytest.param("cpu", recipe, "eager", marks=pytest.mark.slow) for recipe in RECIPES[2:]]
SLOW += [pytest.param("cpu", recipe, "inductor", marks=pytest.mark.slow) for recipe in RECIPES[:2]]
COMPILED = [pytest.param("cuda", recipe, "inductor", marks=pytest.mark.gpu) for recipe in RECIPES[:3]]
COMPILED += [("cpu", recipe, "eager") for recipe in RECIPES[:2]] + SLOW


@pytest.mark.parametrize(("device", "recipe", "backend"), COMPILED)
def test_layers_compile_into_one_graph(device, recipe, backend):
    """Two layers, as training compiles its own: for any number of tokens, and as near to float64 as otherwise. Equal
    they need not be, since a compiler leaves out roundings between them. "eager" captures the graph only."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    width, sizes, multiply = (768, (2048, 1000), scaled_mm) if device == "cuda" else (48, (24, 40), emulated)
    exact = nn.Sequential(*(nn.Linear(width, width, bias=False, dtype=torch.float64) for _ in range(2))).to(device)
    if device == "cuda":
        scaled_mm_layer(exact[0].weight, recipe)
    model = nn.Sequential(*(layer_of(each.weight, recipe, dtype=BF16, multiply=multiply) for each in exact))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for tokens in sizes:
        x, _, upstream = inputs(tokens, width, width, device=device)
        expected = results(exact, x.double(), upstream)
        found, eager = (
            [relative_error(*each) for each in zip(results(module, x, upstream), expected, strict=True)]
            for module in (compiled, model)
        )
        assert all(a < 1.25 * b for a, b in zip(found, eager, strict=True))
