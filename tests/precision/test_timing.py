"""Products are timed at their own shapes and layouts; what there is to time depends on device and backend."""

import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from yxanul.config import Backend, Recipe
from yxanul.precision import timing
from yxanul.precision.linear import Precision, build_precision
from yxanul.precision.products import Fp8Layer
from yxanul.precision.recipes import Role, shape
from yxanul.precision.support import Choice
from yxanul.precision.timing import layer_timer, product_timer, timer

CPU = torch.device("cpu")


class Layer(Fp8Layer):
    """Takes longer in FP8."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x):
        time.sleep(0.02 if self.roles else 0)
        return x @ self.weight.T


def test_there_is_nothing_to_time_on_a_cpu(precision_of):
    for name in ("bf16", "fp8"):
        config = precision_of(name)
        assert timer(config, build_precision(config, CPU), CPU, compiled=False) is None


def test_every_product_is_timed_once_at_its_shape(precision_of, monkeypatch):
    """With the multiplication itself replaced, which needs a GPU in general."""
    seen = []

    def multiply(left, right, dtype):
        seen.append((*left.codes.shape, right.codes.size(0)))
        time.sleep(0.02)
        return torch.zeros(left.codes.size(0), right.codes.size(0), dtype=dtype)

    monkeypatch.setattr(timing, "scaled_mm", multiply)
    precision = Precision(None, torch.bfloat16, "", Choice(Backend.scaled_mm, Recipe.rowwise))
    timed = product_timer(precision_of("fp8"), precision, CPU, compiled=False)
    for role in Role:
        seen.clear()
        assert timed(role, 64, 48, 32) < 0.9, "the slow product cannot win"
        rows, columns, summed = shape(role, 64, 48, 32)
        assert set(seen) == {(rows, summed, columns)}
        count = len(seen)
        timed(role, 64, 48, 32)
        assert len(seen) == count


def test_layers_are_timed_as_a_whole():
    precision = Precision(Layer, torch.float32, "", Choice(Backend.te, Recipe.tensorwise), around=nullcontext)
    timed = layer_timer(precision, CPU)
    assert timed(Role.forward, 64, 48, 32) == timed(Role.weight_gradient, 64, 48, 32) < 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [Recipe.tensorwise, Recipe.rowwise, Recipe.blockwise])
@pytest.mark.parametrize("compiled", [False, True])
def test_torchs_products_on_a_gpu(precision_of, recipe, compiled):
    device = torch.device("cuda")
    config = replace(precision_of("fp8"), backend=Backend.scaled_mm, recipe=recipe)
    precision = build_precision(config, device)
    if precision.fp8 is None:
        pytest.skip(precision.lost)
    timed = timer(config, precision, device, compiled)
    assert all(0.05 < timed(role, 4096, 1024, 768) < 20 for role in Role)
