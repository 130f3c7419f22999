"""Attention kernels for CUDA: they read the packed row as it lies, without padding and without a call a segment.

`varlen` is torch's own FlashAttention over segments of any length, `flash` that of the flash-attn package;
both take bf16 or fp16. `flex` is torch's flex attention, compiled by Triton, with a block mask: blocks of 128 by
128 tokens that hold no pair of one segment are never touched.
"""

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from yxanul.model.attention import Attention, Layout, bmm, sdpa

BLOCK = 128


def attentions(device: torch.device, dtype: torch.dtype) -> dict[str, Attention]:
    """The kernels by name that can run on this device with activations of this dtype; on a CPU the fastest first."""
    if device.type != "cuda":
        return {"bmm": bmm, "sdpa": sdpa} if dtype is torch.bfloat16 else {"sdpa": sdpa}
    found: dict[str, Attention] = {"sdpa": sdpa}
    if importlib.util.find_spec("triton"):
        found["flex"] = flex
    if dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(device) >= (8, 0):
        found["varlen"] = partial(boundaries, torch_varlen())
        if importlib.util.find_spec("flash_attn"):
            found["flash"] = partial(boundaries, flash_varlen())
    return found


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(q, k, v, boundaries, longest) -> attention; shapes as in `Layout.attend` and `Boundaries`."""


@dataclass(frozen=True)
class Boundaries:
    """Segments as their boundaries in the row, int32 (segments + 1,), and no segment longer than `longest`."""

    kernel: Kernel
    boundaries: Tensor
    longest: int

    def map(self, function: Callable[[Tensor], Tensor]) -> "Boundaries":
        return replace(self, boundaries=function(self.boundaries))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.kernel(q, k, v, self.boundaries, self.longest)


def boundaries(kernel: Kernel, segment_starts: Sequence[int], num_tokens: int, seq_len: int) -> Layout:
    """An `Attention` by a variable-length kernel."""
    starts = torch.as_tensor(segment_starts, dtype=torch.int32)
    return Boundaries(kernel, torch.cat([starts, torch.tensor([num_tokens], dtype=torch.int32)]), seq_len)


@cache
def torch_varlen() -> Kernel:
    """torch.nn.attention.varlen; in torch 2.11 it knows no grouped heads, and keys and values are repeated."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def kernel(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: int) -> Tensor:
        options = {"enable_gqa": True} if grouped else {}
        if not grouped:
            k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        return varlen_attn(q, k, v, boundaries, boundaries, longest, longest, window_size=(-1, 0), **options)

    return kernel


@cache
def flash_varlen() -> Kernel:
    """The flash-attn package's kernel."""
    from flash_attn import flash_attn_varlen_func

    def kernel(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: int) -> Tensor:
        return flash_attn_varlen_func(q, k, v, boundaries, boundaries, longest, longest, causal=True)

    return kernel


def flex(segment_starts: Sequence[int], num_tokens: int, seq_len: int) -> Layout:
    """An `Attention` by flex attention: on CUDA with Triton, in any dtype."""
    segments = torch.zeros(num_tokens, dtype=torch.int32)
    segments[torch.as_tensor(segment_starts, dtype=torch.int64)] = 1
    return Flex(segments.cumsum(0, dtype=torch.int32))


@dataclass(frozen=True)
class Flex:
    """The number of the segment that each token lies in, int32 (tokens,)."""

    segments: Tensor

    @cached_property
    def mask(self) -> BlockMask:
        return block_mask(self.segments)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Flex":
        return Flex(function(self.segments))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = compiled_flex()(q, k, v, block_mask=self.mask, enable_gqa=q.size(1) != k.size(1))
        return out.squeeze(0).transpose(0, 1)


@cache
def compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, fullgraph=True)


def block_mask(segments: Tensor) -> BlockMask:
    """The block mask of causal attention inside segments, int32 (tokens,) ascending.

    What `create_block_mask` would find by evaluating the mask for every pair of tokens follows here from the
    first and last segment of each block.
    """
    blocks = -(-len(segments) // BLOCK)
    padded = torch.nn.functional.pad(segments, (0, blocks * BLOCK - len(segments)), value=torch.iinfo(torch.int32).max)
    first, last = padded.view(blocks, BLOCK)[:, 0], padded.view(blocks, BLOCK)[:, -1]
    index = torch.arange(blocks, device=segments.device)
    below = index[:, None] > index[None, :]
    full = below & (first[None, :] == last[:, None])
    some = below & (last[None, :] >= first[:, None]) & ~full | (index[:, None] == index[None, :])

    def inside(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (segments[query] == segments[key])

    return BlockMask.from_kv_blocks(
        *_ordered(some), *_ordered(full), BLOCK, inside, seq_lengths=(len(segments), len(segments))
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks a row has and which, int32 (1, 1, rows) and (1, 1, rows, columns), of bool (rows, columns)."""
    counts = blocks.sum(1, dtype=torch.int32)
    columns = blocks.int().argsort(dim=1, descending=True, stable=True).int()
    return counts[None, None], columns[None, None]
