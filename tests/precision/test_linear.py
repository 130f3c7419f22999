"""What a precision computes in, and that bf16 products leave float32 gradients."""

import pytest
import torch

from yxanul.precision.linear import build_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cpu_units(monkeypatch):
    """Sets what the CPU says that it can do."""
    return lambda **units: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)


@pytest.fixture
def bf16(cpu_units, precision_of):
    cpu_units(avx512_bf16=True)
    return build_precision(precision_of("bf16"), CPU)


def test_fp32_is_exact(precision_of):
    precision = build_precision(precision_of("fp32"), CPU)
    layer, x = precision.linear(6, 4), torch.randn(3, 6)
    assert (precision.dtype, precision.computes) == (torch.float32, "fp32")
    assert layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x), x @ layer.weight.T)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp8"])
def test_layers_have_one_float32_weight_out_by_in(cpu_units, precision_of, name):
    """As the model and the optimizers take for granted."""
    cpu_units(avx512_bf16=True)
    layer = build_precision(precision_of(name), CPU).linear(6, 4)
    ((parameter, weight),) = layer.named_parameters()
    assert (parameter, tuple(weight.shape), weight.dtype) == ("weight", (4, 6), torch.float32)


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_bf16_products_leave_float32_gradients_near_exact_ones(bf16, input_dtype):
    torch.manual_seed(0)
    layer, x = bf16.linear(64, 48), torch.randn(200, 64).to(input_dtype).requires_grad_()
    upstream = torch.randn(200, 48)
    out = layer(x)
    out.backward(upstream.to(out.dtype))
    assert (out.dtype, layer.weight.grad.dtype, x.grad.dtype) == (torch.bfloat16, torch.float32, input_dtype)

    weight, exact = (tensor.detach().double() for tensor in (layer.weight, x))
    pairs = [
        (out, exact @ weight.T),
        (layer.weight.grad, upstream.double().T @ exact),
        (x.grad, upstream.double() @ weight),
    ]
    for found, expected in pairs:
        error = (found.double() - expected).norm() / expected.norm()
        assert 0 < error < 0.01


def test_small_gradients_add_up_over_many_micro_batches(bf16):
    """A sum kept in bf16 would stay at 1: it has 8 bits, and each addend is 2^-10 of it."""
    layer = bf16.linear(1, 1)
    for gradient in [1.0] + [2**-10] * 1024:
        layer(torch.ones(1, 1)).backward(torch.full((1, 1), gradient, dtype=torch.bfloat16))
    assert layer.weight.grad.item() == pytest.approx(2.0)


@pytest.mark.parametrize("units", [{}, {"avx512_bf16": False, "avx2": True}])
def test_a_cpu_without_bf16_units_computes_in_float32_and_says_so(cpu_units, precision_of, units):
    cpu_units(**units)
    precision = build_precision(precision_of("bf16"), CPU)
    assert precision.dtype == torch.float32
    assert precision.linear(6, 4)(torch.randn(3, 6)).dtype == torch.float32
    assert precision.computes == "fp32 (this CPU has no bf16 units)"


@pytest.mark.parametrize(("device", "units"), [(CPU, {"avx512_bf16": True}), (CUDA, {})])
def test_bf16_runs_where_the_device_has_it(cpu_units, precision_of, device, units):
    """A GPU does not ask the CPU."""
    cpu_units(**units)
    precision = build_precision(precision_of("bf16"), device)
    assert (precision.dtype, precision.computes) == (torch.bfloat16, "bf16")
