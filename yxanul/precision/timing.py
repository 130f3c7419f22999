"""Products timed in FP8 and in the activations' dtype on the device at hand, quantization included.

FP8 halves the product itself and adds the work of finding magnitudes and casting; which of both is more depends on
the shape, so every shape is tried.
"""

from collections.abc import Callable
from functools import cache

import torch

from yxanul import hardware
from yxanul.config import Backend, PrecisionConfig
from yxanul.precision.linear import Precision
from yxanul.precision.plan import Timer
from yxanul.precision.products import fp8_product, plain_product, scaled_mm
from yxanul.precision.recipes import Role, operands, shape


def timer(config: PrecisionConfig, precision: Precision, device: torch.device, compiled: bool) -> Timer | None:
    """How many times as fast products are in FP8 on this device; None if FP8 is not there to be timed.

    Args:
        compiled: whether the run compiles its layers, and so fuses the quantization.
    """
    here = device.type == "cuda" and torch.cuda.is_available()
    if precision.fp8 is None or precision.fp8.backend is Backend.emulated or not here:
        return None
    if precision.fp8.backend is Backend.te:
        return layer_timer(precision, device)
    return product_timer(config, precision, device, compiled)


def product_timer(config: PrecisionConfig, precision: Precision, device: torch.device, compiled: bool) -> Timer:
    """Times each product by itself, by torch's scaled_mm."""
    dtype = precision.dtype

    @cache
    def ratio(role: Role, m: int, n: int, k: int) -> float:
        rows, columns, summed = shape(role, m, n, k)
        left = _operand(rows, summed, device, dtype, turned=role is Role.weight_gradient)
        weight = torch.float32 if role is not Role.weight_gradient else dtype
        right = _operand(columns, summed, device, weight, turned=role is not Role.forward)
        how = operands(precision.fp8.recipe, role, config.power_of_two_scales)
        products = plain_product(dtype), fp8_product(scaled_mm, how, dtype)
        plain, fp8 = (torch.compile(product, dynamic=False) if compiled else product for product in products)
        return _ratio(lambda: plain(left, right), lambda: fp8(left, right), device)

    return ratio


def layer_timer(precision: Precision, device: torch.device) -> Timer:
    """Transformer Engine's layers by forward and backward together: it takes all three products or none."""

    @cache
    def layer_ratio(m: int, n: int, k: int) -> float:
        layer = precision.linear(k, n).to(device)
        torch.nn.init.normal_(layer.weight, std=0.02)
        x = torch.randn(m, k, device=device, dtype=precision.dtype, requires_grad=True)
        gradient = torch.randn(m, n, device=device, dtype=precision.dtype)

        def step(roles: frozenset[Role]) -> Callable[[], object]:
            def run() -> None:
                layer.use(roles)
                with precision.around():
                    out = layer(x)
                torch.autograd.grad(out, (x, layer.weight), gradient)

            return run

        return _ratio(step(frozenset()), step(frozenset(Role)), device)

    return lambda role, m, n, k: layer_ratio(m, n, k)


def _operand(rows: int, columns: int, device: torch.device, dtype: torch.dtype, turned: bool) -> torch.Tensor:
    """A random matrix; `turned`, it lies in memory by columns, as it does where the step turns it."""
    matrix = torch.randn(columns, rows, device=device, dtype=dtype).T
    return matrix if turned else matrix.contiguous()


def _ratio(plain: Callable[[], object], fp8: Callable[[], object], device: torch.device) -> float:
    return hardware.best_seconds(plain, device) / hardware.best_seconds(fp8, device)
