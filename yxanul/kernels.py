"""Which kernels a run uses: those that it names, or the fastest when timed on this device at its own shapes.

Only kernels that compute the same mathematics stand for choice, so nothing but speed and rounding depends on it.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from yxanul import hardware
from yxanul.config import Config, HardwareConfig, ModelConfig
from yxanul.errors import ConfigError
from yxanul.model.attention import Attention, Layout
from yxanul.model.cuda_attention import attentions
from yxanul.model.embedding import padded_vocab
from yxanul.model.fused_loss import ON_REQUEST, cross_entropy_kernels
from yxanul.model.loss import CrossEntropy

AUTO = "auto"


@dataclass(frozen=True)
class Kernels:
    """The choice by name; "auto" stands for a device that is not here to be timed.

    Attributes:
        attention: sequence length -> kernel.
        compiled: whether torch.compile makes the graphs of the layers.
    """

    attention: Mapping[int, str]
    cross_entropy: str
    compiled: bool


def choose_kernels(
    config: Config, device: torch.device, dtype: torch.dtype, rows: Mapping[int, int], compiled: bool
) -> Kernels:
    """The kernels of a run.

    Args:
        dtype: of the activations.
        rows: sequence length -> tokens of its micro-batches, for every length of the run.
        compiled: whether the layers are.

    Raises:
        ConfigError: a kernel is named that cannot run here.
    """
    attention, cross_entropy = config.attention.value, config.cross_entropy.value
    if device.type == "cuda" and not torch.cuda.is_available():
        return Kernels(dict.fromkeys(rows, attention), cross_entropy, compiled)
    attentions_here = _candidates("attention", attention, attentions(device, dtype))
    losses_here = _candidates("cross_entropy", cross_entropy, _losses(config, device))

    def attention_for(seq_len: int, tokens: int) -> str:
        if device.type == "cpu" or config.hardware.deterministic:  # by rule, for the same weights to the last bit
            return next(iter(attentions_here))
        starts = range(0, tokens, seq_len)
        return _fastest(
            attentions_here,
            lambda kernel: attention_step(kernel(starts, tokens, seq_len), config.model, tokens, device, dtype),
            device,
        )

    rank, vocab_size = config.model.embedding_rank or config.model.hidden_size, config.tokenizer.vocab_size
    loss = _fastest(
        losses_here,
        lambda kernel: cross_entropy_step(kernel, vocab_size, rank, max(rows.values()), device, dtype),
        device,
    )
    return Kernels({seq_len: attention_for(seq_len, tokens) for seq_len, tokens in rows.items()}, loss, compiled)


def compiles(hardware: HardwareConfig, device: torch.device) -> bool:
    """Whether the layers are compiled: as asked, and by itself on a GPU, where it pays.

    Raises:
        ConfigError: it is asked for and what torch.compile needs is missing.
    """
    compiler = find_compiler(device)
    if hardware.compile is True and compiler is None:
        raise ConfigError("hardware.compile", True, "torch.compile needs Triton on a GPU and a C++ compiler on a CPU")
    if hardware.compile == AUTO:
        return device.type == "cuda" and compiler is not None and not hardware.deterministic
    return hardware.compile


def find_compiler(device: torch.device) -> str | None:
    """What torch.compile makes its kernels with, None if it is missing; a GPU that is not here is taken to have it."""
    if device.type == "cuda":
        absent = torch.cuda.is_available() and not importlib.util.find_spec("triton")
        return None if absent else "triton"
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def attention_of(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> Callable[[int], Attention]:
    """Sequence length -> the chosen kernel; another length than those of the run gets the next longer one's."""
    here = attentions(device, dtype)
    lengths = sorted(kernels.attention)
    return lambda seq_len: here[kernels.attention[next((n for n in lengths if n >= seq_len), lengths[-1])]]


def cross_entropy_of(kernels: Kernels, device: torch.device) -> CrossEntropy:
    """The chosen kernel of head and loss."""
    return (cross_entropy_kernels(device) | ON_REQUEST)[kernels.cross_entropy]


def attention_step(
    layout: Layout, model: ModelConfig, tokens: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], None]:
    """A function that does one layer's attention over a row of `tokens`, forward and backward."""
    head_dim = model.hidden_size // model.num_heads
    q, k, v = (
        torch.randn(tokens, heads, head_dim, device=device, dtype=dtype, requires_grad=True)
        for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)
    )
    layout = layout.map(lambda tensor: tensor.to(device))
    gradient = torch.randn_like(q)

    def step() -> None:
        torch.autograd.grad(layout.attend(q, k, v), (q, k, v), gradient)

    return step


def cross_entropy_step(
    kernel: CrossEntropy, vocab_size: int, rank: int, tokens: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], None]:
    """A function that does the last matrix product and the loss of `tokens`, forward and backward."""
    hidden = torch.randn(tokens, rank, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(padded_vocab(vocab_size), rank, device=device).mul_(0.02).to(dtype).requires_grad_()
    targets = torch.randint(vocab_size, (tokens,), device=device)

    def step() -> None:
        torch.autograd.grad(kernel(hidden, weight, targets), (hidden, weight))

    return step


def _losses(config: Config, device: torch.device) -> Mapping[str, CrossEntropy]:
    kernels = cross_entropy_kernels(device)
    if config.cross_entropy.value != AUTO:
        return kernels | ON_REQUEST
    return {"chunked": kernels["chunked"]} if config.ngram.order or config.hardware.deterministic else kernels


def _candidates(key: str, asked: str, here: Mapping[str, Callable]) -> Mapping[str, Callable]:
    if asked == AUTO:
        return here
    if asked not in here:
        raise ConfigError(key, asked, f"cannot run on this device in this precision; there are {', '.join(here)}")
    return {asked: here[asked]}


def _fastest(
    kernels: Mapping[str, Callable], make_step: Callable[[Callable], Callable[[], None]], device: torch.device
) -> str:
    """The name of the kernel whose step takes the least time; a single one is not timed."""
    if len(kernels) == 1:
        return next(iter(kernels))
    return min(kernels, key=lambda name: hardware.best_seconds(make_step(kernels[name]), device))
