"""Which FP8 can be had where, and that what is missing is said in words."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from yxanul.config import Backend, Fallback, Recipe
from yxanul.errors import ConfigError
from yxanul.precision import support
from yxanul.precision.support import Choice, Machine, choose, machine, transformer_engine_missing, why_not

CPU = Machine("cpu")
A100, ADA, H100, B200, RTX5090 = (Machine("cuda", capability, here=False) for capability in (8.0, 8.9, 9.0, 10.0, 12.0))


@pytest.fixture
def fp8(precision_of):
    """Makes FP8 configurations: `fp8(backend=Backend.te)`."""
    return lambda **changes: replace(precision_of("fp8"), **changes)


@pytest.mark.parametrize(
    ("backend", "recipe", "where"),
    [
        (Backend.scaled_mm, Recipe.tensorwise, {ADA, H100, B200, RTX5090}),
        (Backend.scaled_mm, Recipe.rowwise, {ADA, H100, B200, RTX5090}),
        (Backend.scaled_mm, Recipe.blockwise, {H100}),
        (Backend.scaled_mm, Recipe.mxfp8, set()),
        (Backend.scaled_mm, Recipe.delayed, set()),
        (Backend.te, Recipe.delayed, {ADA, H100, B200, RTX5090}),
        (Backend.te, Recipe.tensorwise, {ADA, H100, B200, RTX5090}),
        (Backend.te, Recipe.rowwise, set()),
        (Backend.te, Recipe.blockwise, {H100}),
        (Backend.te, Recipe.mxfp8, {B200}),
        (Backend.emulated, Recipe.mxfp8, {CPU, A100, ADA, H100, B200, RTX5090}),
        (Backend.emulated, Recipe.delayed, set()),
    ],
)
def test_recipes_run_on_the_generations_that_have_them(backend, recipe, where):
    """As notes and sources have it; every refusal is a reason in words."""
    for each in (CPU, A100, ADA, H100, B200, RTX5090):
        reason = why_not(backend, recipe, each)
        assert (reason is None) == (each in where), reason
        assert reason is None or len(reason) > 10


def test_blocks_need_a_cuda_that_has_them():
    assert "CUDA 12.9" in why_not(Backend.scaled_mm, Recipe.blockwise, Machine("cuda", 9.0, cuda=(12, 6)))
    assert why_not(Backend.scaled_mm, Recipe.blockwise, Machine("cuda", 9.0, cuda=(12, 9))) is None
    assert why_not(Backend.scaled_mm, Recipe.blockwise, Machine("cuda", 9.0, cuda=(13, 0))) is None


def test_auto_emulates_on_a_cpu_and_takes_torch_where_transformer_engine_is_missing(fp8, monkeypatch):
    assert choose(fp8(), CPU) == Choice(Backend.emulated, Recipe.tensorwise)
    assert choose(fp8(), H100) == Choice(Backend.scaled_mm, Recipe.tensorwise)
    here = Machine("cuda", 9.0, cuda=(12, 9))
    monkeypatch.setattr(support, "transformer_engine_missing", lambda: "Transformer Engine does not load: no")
    assert choose(fp8(), here) == Choice(Backend.scaled_mm, Recipe.tensorwise)
    monkeypatch.setattr(support, "transformer_engine_missing", lambda: None)
    assert choose(fp8(), here) == Choice(Backend.te, Recipe.tensorwise)
    assert choose(fp8(), replace(here, capability=10.0)) == Choice(Backend.te, Recipe.mxfp8)


def test_a_gpu_without_fp8_falls_back_in_words_and_never_to_emulation(fp8):
    assert choose(fp8(), A100) == "compute capability 8.0 has no FP8 units (8.9 has)"
    assert choose(fp8(backend=Backend.emulated), A100) == Choice(Backend.emulated, Recipe.tensorwise)


@pytest.mark.parametrize("where", [CPU, A100, Machine("cuda", None, here=False)])
def test_fallback_error_says_what_is_missing(fp8, where):
    """On a CPU too: emulated FP8 is none."""
    with pytest.raises(ConfigError, match=r"precision.fallback=error: FP8 cannot run: .*(capability|CPU)"):
        choose(fp8(fallback=Fallback.error), where)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no libtransformer_engine.so"), OSError("a\nb"), RuntimeError(), AssertionError("x")]
)
def test_every_way_in_which_transformer_engine_fails_to_load_is_a_reason(monkeypatch, error):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("transformer_engine"):
                raise error

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    transformer_engine_missing.cache_clear()
    reason = transformer_engine_missing()
    transformer_engine_missing.cache_clear()
    assert reason.startswith("Transformer Engine does not load: ") and "\n" not in reason
    assert (str(error).splitlines() or [type(error).__name__])[0] in reason


def test_a_transformer_engine_that_loads_is_no_reason(monkeypatch):
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    transformer_engine_missing.cache_clear()
    assert transformer_engine_missing() is None
    transformer_engine_missing.cache_clear()


def test_the_machine_is_asked_or_planned_for(monkeypatch):
    cuda = torch.device("cuda")
    assert machine(torch.device("cpu"), 9.0) == Machine("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine(cuda, 8.9) == Machine("cuda", 8.9, here=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    assert machine(cuda, 8.9) == Machine("cuda", 9.0, here=True, cuda=(12, 9))
