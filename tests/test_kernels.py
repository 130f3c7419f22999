"""Which kernels a run uses: as named, else the fastest that is there."""

import time
from functools import partial

import pytest
import torch

from yxanul import kernels
from yxanul.errors import ConfigError
from yxanul.kernels import Kernels, attention_of, choose_kernels, compiles, cross_entropy_of
from yxanul.model.attention import sdpa
from yxanul.model.loss import summed_cross_entropy

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROWS = {8: 64, 32: 96}


def test_a_cpu_goes_by_rules(compose):
    """Timing would choose now this, now that, and the same command would not give the same weights."""
    found = choose_kernels(compose("model=nano"), CPU, torch.bfloat16, {8: 64, 256: 256, 512: 512}, False)
    assert found == Kernels({8: "bmm", 256: "bmm", 512: "bmm"}, "chunked", compiled=False)
    found = choose_kernels(compose("model=nano", "attention=sdpa"), CPU, torch.bfloat16, ROWS, False)
    assert set(found.attention.values()) == {"sdpa"}
    found = choose_kernels(compose("model=nano"), CPU, torch.float32, ROWS, False)
    assert found == Kernels({8: "sdpa", 32: "sdpa"}, "chunked", compiled=False)
    assert attention_of(found, CPU, torch.float32)(8) is sdpa
    assert cross_entropy_of(found, CPU) is summed_cross_entropy


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("attention=flex", "attention=flex: cannot run on this device in this precision; there are sdpa"),
        ("attention=varlen", "attention=varlen: "),
        ("cross_entropy=liger", "cross_entropy=liger: cannot run on this device in this precision; there are chunked"),
    ],
)
def test_a_kernel_that_cannot_run_here_is_refused_in_a_line(compose, override, line):
    with pytest.raises(ConfigError) as error:
        choose_kernels(compose("model=nano", override), CPU, torch.float32, ROWS, False)
    assert line in str(error.value) and "\n" not in str(error.value)


def on_cpu(step, layout, model, tokens, device, dtype):
    return step(layout, model, tokens, CPU, dtype)


def test_the_fastest_is_chosen_for_each_length(compose, monkeypatch):
    """Two kernels of which one is slow with short sequences, the other with long ones."""

    def waiting(seconds_of):
        def attention(starts, tokens, seq_len):
            layout = sdpa(starts, tokens, seq_len)

            class Slow:
                def map(self, function):
                    return self

                def attend(self, q, k, v):
                    time.sleep(seconds_of(seq_len))
                    return layout.attend(q, k, v)

            return Slow()

        return attention

    several = {"a": waiting(lambda n: 0.03 if n < 20 else 0), "b": waiting(lambda n: 0.03 if n >= 20 else 0)}
    monkeypatch.setattr(kernels, "attentions", lambda device, dtype: several)
    elsewhere = torch.device("meta")  # a device that is no CPU: its kernels are timed
    monkeypatch.setattr(kernels, "attention_step", partial(on_cpu, kernels.attention_step))
    monkeypatch.setattr(kernels, "cross_entropy_kernels", lambda device: {"chunked": summed_cross_entropy})
    found = choose_kernels(compose("model=nano"), elsewhere, torch.float32, ROWS, False)
    assert found.attention == {8: "b", 32: "a"}
    chosen = attention_of(found, elsewhere, torch.float32)
    assert [chosen(length) for length in (8, 32)] == [several["b"], several["a"]]
    assert [chosen(length) for length in (1, 9, 4096)] == [several["b"], several["a"], several["a"]]


def test_nothing_is_timed_where_the_same_bits_are_wanted(compose, monkeypatch):
    here = {
        "cross_entropy_kernels": {"chunked": summed_cross_entropy, "liger": None},
        "attentions": {"sdpa": sdpa, "flex": None},
    }
    for name, found in here.items():
        monkeypatch.setattr(kernels, name, lambda *_, found=found: found)
    config = compose("model=nano", "hardware.deterministic=true")
    found = choose_kernels(config, torch.device("meta"), torch.float32, ROWS, False)
    assert found == Kernels({8: "sdpa", 32: "sdpa"}, "chunked", compiled=False)
    monkeypatch.setattr(kernels, "find_compiler", lambda device: "triton")
    assert compiles(compose("model=nano").hardware, CUDA) and not compiles(config.hardware, CUDA)


def test_the_faster_loss_is_chosen(compose, monkeypatch):
    def slow(hidden, weight, targets):
        time.sleep(0.2)
        return summed_cross_entropy(hidden, weight, targets)

    config = compose("model=nano", "tokenizer=superbpe8k", "tokenizer.vocab_size=512", "tokenizer.transition=300")
    monkeypatch.setattr(kernels, "cross_entropy_kernels", lambda device: {"slow": slow, "fast": summed_cross_entropy})
    assert choose_kernels(config, CPU, torch.float32, ROWS, False).cross_entropy == "fast"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a GPU that is not here")
def test_a_gpu_that_is_not_here_is_planned_for_untimed(compose):
    found = choose_kernels(compose("model=nano", "cross_entropy=liger"), CUDA, torch.bfloat16, ROWS, True)
    assert found == Kernels({8: "auto", 32: "auto"}, "liger", compiled=True)


@pytest.mark.parametrize(("asked", "expected"), [("auto", False), ("true", True), ("false", False)])
def test_compiling_is_as_asked(compose, asked, expected, monkeypatch):
    monkeypatch.setattr(kernels, "find_compiler", lambda device: "c++")
    assert compiles(compose("model=nano", f"hardware.compile={asked}").hardware, CPU) is expected


def test_compiling_without_a_compiler_is_refused_in_a_line(compose, monkeypatch):
    monkeypatch.setattr(kernels, "find_compiler", lambda device: None)
    with pytest.raises(ConfigError, match=r"hardware.compile=True: .* C\+\+ compiler"):
        compiles(compose("model=nano", "hardware.compile=true").hardware, CPU)
    assert compiles(compose("model=nano").hardware, CUDA) is False  # by itself it does without


@pytest.mark.gpu
def test_a_gpu_times_what_it_has(compose):
    found = choose_kernels(compose("model=nano", "precision=bf16"), CUDA, torch.bfloat16, {8: 4096, 512: 4096}, True)
    assert set(found.attention.values()) <= {"sdpa", "flex", "varlen", "flash"}
    assert found.cross_entropy in ("chunked", "liger")
