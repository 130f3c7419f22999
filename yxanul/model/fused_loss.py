"""Kernels of head and cross-entropy, all of one meaning, for a benchmark to choose among.

The chunked reference runs everywhere; on CUDA it writes the logits of a chunk several times over, and a Triton
kernel fewer times. Libraries are imported when asked for: they need Triton, and a CPU has none.

Left out on purpose, because a kernel is only worth choosing if its loss and gradients are right:
cut-cross-entropy 25.1.1 sums both gradients in bf16, hundreds of tiles into one (emulated: 1 to 15 percent
off at a vocabulary of 200,064), under a lock that is let go before the other warps have written; and
`torch.nn.functional.linear_cross_entropy` rounds the sum of bf16 inputs to bf16.
"""

from contextlib import suppress

import torch
from torch import Tensor

from yxanul.model.loss import CHUNK_BYTES, CrossEntropy, plain_cross_entropy, summed_cross_entropy
from yxanul.model.prior import Prior

ON_REQUEST: dict[str, CrossEntropy] = {"plain": plain_cross_entropy}
"""Kernels that run everywhere and are taken only where they are named."""


def liger_budget(num_tokens: int, vocab_size: int, rank: int, itemsize: int) -> int:
    """Liger's `chunk_mem_const` at which a chunk of logits takes at most CHUNK_BYTES, and not far less.

    Liger makes chunks of `next_power_of_2(tokens / ceil(vocabulary / (const * rank)))` tokens. By default const
    is 1, which suits a wide model; at rank 128 and a vocabulary of 200,064 it makes 1024 chunks of 64 tokens,
    and each of them reads and writes the whole gradient of the weight.

    Args:
        itemsize: bytes of one logit.
    """
    fitting = max(1, CHUNK_BYTES["cuda"] // (itemsize * vocab_size))
    chunk_tokens = 1 << (fitting.bit_length() - 1)
    return max(1, vocab_size * chunk_tokens // (num_tokens * rank))


def liger_cross_entropy() -> CrossEntropy:
    """liger-kernel's fused kernel; raises ImportError where it or Triton is missing.

    Its backward scales the saved gradients in place, so it can run only once for each forward.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, prior: Prior | None = None) -> Tensor:
        assert prior is None, "validation leaves a prior to the chunked loss"
        budget = liger_budget(len(hidden), *weight.shape, hidden.element_size())
        return liger_fused_linear_cross_entropy(
            hidden, weight, targets, reduction="sum", accum_dtype=torch.float32, chunk_mem_const=budget
        )

    return cross_entropy


def cross_entropy_kernels(device: torch.device) -> dict[str, CrossEntropy]:
    """The kernels to choose among on `device`, by name: always "chunked", and on CUDA "liger" if it is installed.

    Each is as `summed_cross_entropy`: (tokens, rank), (vocabulary, rank) and int64 (tokens,) -> the summed negative
    log-likelihood in nats, a float32 scalar, differentiable in the first two. Only "chunked" takes a prior.
    """
    kernels: dict[str, CrossEntropy] = {"chunked": summed_cross_entropy}
    if device.type == "cuda":
        with suppress(ImportError):
            kernels["liger"] = liger_cross_entropy()
    return kernels
