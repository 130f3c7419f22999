"""FP8 numbers: no value is off by more than its format rounds, at any magnitude, and no block pays for another."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from yxanul.precision.formats import Format, Scaling, quantize

LARGEST = {Format.e4m3: 448.0, Format.e5m2: 57344.0}
ROUNDING = {Format.e4m3: 2.0**-4, Format.e5m2: 2.0**-3}
SPACING = {Format.e4m3: 2.0**-9, Format.e5m2: 2.0**-16}
"""Of the two formats (arXiv 2209.05433): the largest number, half the spacing of mantissas, and the spacing of the
subnormal numbers."""

SMALLEST_AMAX = 2.0**-100
"""Below it scales stay as they are; all that a run can meet is above."""

FLOAT32 = 1 + 2.0**-20
"""How much errors may grow by the few float32 operations around the rounding itself."""

EVEN = [Scaling(None, None), Scaling(1, None), Scaling(1, 128), Scaling(128, 128), Scaling(1, 32)]
SCALINGS = [Scaling(each.rows, each.columns, power_of_two) for each in EVEN for power_of_two in (False, True)]


def name(value):
    if isinstance(value, Scaling):
        return f"{value.rows}x{value.columns}{'-power-of-two' * value.power_of_two}"
    return None


formats = pytest.mark.parametrize("fp8", Format)
scalings = pytest.mark.parametrize("scaling", SCALINGS, ids=name)


def blocks(shape, scaling):
    """The slices of each block that shares a scale, in the order of the scales."""
    rows, columns = scaling.rows or shape[0], scaling.columns or shape[1]
    for top, left in itertools.product(range(0, shape[0], rows), range(0, shape[1], columns)):
        yield slice(top, top + rows), slice(left, left + columns)


def largest_of_blocks(matrix, scaling):
    """Float64, the largest magnitude of the block around each place."""
    found = torch.empty_like(matrix, dtype=torch.float64)
    for block in blocks(matrix.shape, scaling):
        found[block] = matrix[block].double().abs().max()
    return found


def largest_error(matrix, fp8, scaling):
    """What each value may be off by: half the spacing of the format's numbers around it, times its block's scale."""
    scales = largest_of_blocks(matrix, scaling).clamp(min=SMALLEST_AMAX) / LARGEST[fp8]
    scales = scales * 2 if scaling.power_of_two else scales
    return torch.maximum(ROUNDING[fp8] * matrix.double().abs(), SPACING[fp8] / 2 * scales) * FLOAT32


def error(matrix, fp8, scaling):
    return (quantize(matrix, fp8, scaling).dequantize().double() - matrix.double()).abs()


def random(*shape, magnitudes=0.0, seed=0):
    """Normal numbers times powers of ten up to `magnitudes` either way."""
    generator = torch.Generator().manual_seed(seed)
    powers = torch.empty(shape).uniform_(-magnitudes, magnitudes, generator=generator)
    return torch.randn(shape, generator=generator) * 10**powers


def alike(*shape):
    """Numbers of either sign from 0.5 to 1."""
    return random(*shape).sign() * torch.rand(shape, generator=torch.Generator().manual_seed(1)).add(1).div(2)


@formats
@scalings
@pytest.mark.parametrize("shape", [(1, 1), (8, 16), (3, 130), (128, 256), (130, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_the_formats(fp8, scaling, shape, dtype):
    """Over magnitudes from 1e-6 to 1e6 in one matrix, whether or not the blocks are whole."""
    matrix = random(*shape, magnitudes=6).to(dtype)
    quantized = quantize(matrix, fp8, scaling)
    values = quantized.dequantize()
    assert (quantized.codes.dtype, quantized.codes.shape) == (fp8.value, shape)
    assert (values.dtype, values.shape) == (torch.float32, shape)
    assert ((values.double() - matrix.double()).abs() <= largest_error(matrix, fp8, scaling)).all()


@formats
@scalings
@pytest.mark.parametrize("magnitude", [1e-25, 1e-6, 1.0, 1e6, 1e30])
def test_matrices_of_one_magnitude_use_the_whole_format(fp8, scaling, magnitude):
    """Their errors reach what a format of one more bit would not: nothing is hidden by bounds that are too wide."""
    matrix = alike(130, 300) * magnitude
    worst = (error(matrix, fp8, scaling) / matrix.double().abs()).max()
    assert ROUNDING[fp8] / 2 * FLOAT32 < worst <= ROUNDING[fp8] * FLOAT32


small_scalings = st.builds(Scaling, st.sampled_from([None, 1, 2, 5]), st.sampled_from([None, 1, 3, 8]), st.booleans())
finite = st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=True)


@given(st.data(), st.sampled_from(Format), small_scalings, st.integers(1, 6), st.integers(1, 10))
def test_errors_are_the_formats_for_any_matrix(data, fp8, scaling, rows, columns):
    """Float32's denormals and zeros among them; magnitudes end where a code times its scale would be rounded up to
    infinity."""
    values = data.draw(st.lists(finite, min_size=rows * columns, max_size=rows * columns))
    matrix = torch.tensor(values).view(rows, columns)
    assert (error(matrix, fp8, scaling) <= largest_error(matrix, fp8, scaling)).all()


@formats
@scalings
def test_scales_put_the_largest_magnitude_at_the_formats_largest_number(fp8, scaling):
    """Powers of two are the next above, up to how float32 rounds a logarithm."""
    matrix = random(130, 300, magnitudes=6)
    quantized = quantize(matrix, fp8, scaling)
    expected = torch.stack([matrix[block].double().abs().max() for block in blocks(matrix.shape, scaling)])
    expected = expected.view(quantized.scales.shape) / LARGEST[fp8]
    ratio = quantized.scales.double() / expected
    if scaling.power_of_two:
        assert (quantized.scales.frexp().mantissa == 0.5).all()
        assert ((ratio >= 1 - 2**-16) & (ratio < 2)).all()
    else:
        assert ((ratio - 1).abs() < 2**-22).all()


@pytest.mark.parametrize("power", range(-90, 110, 7))
def test_powers_of_two_stay_when_they_fit(power):
    """A logarithm that comes out a little too large would double the scale, and cost a bit."""
    quantized = quantize(torch.tensor([[448.0 * 2.0**power]]), Format.e4m3, Scaling(1, None, power_of_two=True))
    assert quantized.scales.item() == 2.0**power


@formats
@scalings
def test_a_matrix_of_fp8_numbers_comes_back_as_it_was(fp8, scaling):
    """All codes of the format, in blocks that are scaled by powers of two."""
    codes = torch.arange(256, dtype=torch.uint8).view(fp8.value).float()
    codes = codes[codes.isfinite()]
    generator = torch.Generator().manual_seed(0)
    matrix = codes[torch.randint(len(codes), (130, 300), generator=generator)]
    for block in blocks(matrix.shape, scaling):
        matrix[block][0, 0] = LARGEST[fp8]
        matrix[block] *= 2.0 ** torch.randint(-20, 20, (), generator=generator)
    torch.testing.assert_close(quantize(matrix, fp8, scaling).dequantize(), matrix, rtol=0, atol=0)


@formats
@scalings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_stay_zeros(fp8, scaling, dtype):
    """In a matrix of nothing else, whose scales would be zero, and beside other numbers."""
    assert quantize(torch.zeros(130, 300, dtype=dtype), fp8, scaling).dequantize().eq(0).all()
    matrix = random(130, 300).to(dtype)
    matrix[::2], matrix[:, 100:] = 0, 0
    assert quantize(matrix, fp8, scaling).dequantize()[matrix == 0].eq(0).all()


@formats
@scalings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [2.0**-132, 1e-38, 1e-33, 2.0**-100])
def test_tiny_numbers_stay_finite(fp8, scaling, dtype, magnitude):
    """A scale that is itself denormal, or zero, would make them infinite; both dtypes have the same exponents."""
    matrix = (random(130, 300) * magnitude).to(dtype)
    assert matrix.any()
    assert (error(matrix, fp8, scaling) <= largest_error(matrix, fp8, scaling)).all()


@formats
@scalings
@pytest.mark.parametrize("place", [(70, 200), (129, 299)])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_poisons_its_block_and_no_other(fp8, scaling, place, value):
    """So that an overflow is seen, wherever it happens; at the end, where a block is not whole, too."""
    matrix = random(130, 300)
    healthy = quantize(matrix, fp8, scaling).dequantize()
    matrix[place] = value
    poisoned = quantize(matrix, fp8, scaling).dequantize()
    inside = largest_of_blocks(matrix, scaling).isfinite().logical_not()
    assert not poisoned[inside].isfinite().any()
    assert poisoned[~inside].equal(healthy[~inside])


@formats
@scalings
def test_an_outlier_costs_its_own_block_only(fp8, scaling):
    """All beside it is lost, as is a whole matrix with one scale; other blocks do not notice."""
    matrix = alike(130, 300)
    matrix[70, 200] = 2.0**40
    found = quantize(matrix, fp8, scaling).dequantize()
    inside = largest_of_blocks(matrix, scaling) == 2.0**40
    assert ((found == 0) == (inside & (matrix < 2))).all()
    outside = ((found - matrix).abs() / matrix.abs())[~inside]
    assert (outside <= ROUNDING[fp8] * FLOAT32).all()


class LargestCast(TorchDispatchMode):
    """Remembers the largest magnitude that was cast to an FP8 format."""

    magnitude = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("dtype") in [each.value for each in Format]:
            self.magnitude = max(self.magnitude, args[0].abs().max().item())
        return func(*args, **kwargs)


@formats
@pytest.mark.parametrize("power_of_two", [False, True])
def test_nothing_larger_than_the_format_is_cast(fp8, power_of_two):
    """A cast of a number that is too large gives NaN or infinity in torch 2.11: how far float32 rounds a quotient up
    must not matter. Among these numbers some come out above."""
    matrix = random(100_000, 1, magnitudes=20)
    with LargestCast() as largest:
        codes = quantize(matrix, fp8, Scaling(1, None, power_of_two)).codes
    assert LARGEST[fp8] / 2 < largest.magnitude <= LARGEST[fp8]
    assert codes.float().isfinite().all()
