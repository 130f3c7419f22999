"""Head and cross-entropy as one chunked operation that never holds the logits of a whole micro-batch.

At a vocabulary of 200,000, the float32 logits of 32k tokens are 26 GB. Here the gradient is computed in the
forward pass, chunk by chunk, so that only one chunk of logits lives at a time and nothing is recomputed.
It is the reference: it runs on every device, and the kernels of `fused_loss` are held against it.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from yxanul.model.prior import Prior

CrossEntropy = Callable[[Tensor, Tensor, Tensor, Prior | None], Tensor]
"""What `summed_cross_entropy` is: (hidden, weight, targets, prior) -> summed negative log-likelihood."""

Scratch = tuple[Tensor, Tensor]

CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 256 * 2**20}
"""Float32 logits in one chunk, by type of device.

At most two such buffers live at once: on CUDA the logits and their softmax, on a CPU the logits, overwritten in
place, and in bf16 half of one for the product before and the gradient after. Chunks are larger on CUDA because
each reads and writes the weight's whole gradient; on a CPU the allocator keeps blocks of this size for the next.
"""

SLICE_BYTES = 16 * 2**20

CHUNK_TOKENS = 128
"""However large the vocabulary, a chunk has so many tokens: enough for full-speed matrix products."""


def chunk_tokens(device: str, vocab_rows: int) -> int:
    """How many tokens' logits over `vocab_rows` entries are held at once on a type of device."""
    return max(CHUNK_TOKENS, CHUNK_BYTES[device] // (4 * vocab_rows))


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    num_tokens, size = len(hidden), chunk_tokens(hidden.device.type, len(weight))
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def _logits(hidden: Tensor, weight: Tensor, prior: Prior | None) -> Tensor:
    """Float32 (tokens, vocabulary); a CPU has no product of bf16 factors that puts out float32."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        logits = (hidden @ weight.T).float()
    if prior:
        prior.add_to(logits)
    return logits


def _fused_gradient(logits: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Float32 logits (tokens, vocabulary) -> the summed loss, float32, and its gradient by them in `dtype`.

    Two passes over the logits, where a softmax is one kernel and memory cheap to get.

    Args:
        target: (tokens, 1) int64.
    """
    log_probabilities = logits.log_softmax(1)
    del logits
    of_target = log_probabilities.gather(1, target)
    gradient = torch.exp(log_probabilities, out=torch.empty_like(log_probabilities, dtype=dtype))
    gradient.scatter_(1, target, of_target.expm1().to(dtype))
    return -of_target.sum(), gradient


def _in_place_gradient(logits: Tensor, target: Tensor) -> Tensor:
    """The summed loss; the logits become its gradient by them.

    More passes than `_fused_gradient`, and faster on a CPU, where pages that nobody used yet cost more than a pass.
    """
    largest = logits.amax(1, keepdim=True)
    loss = (largest - logits.gather(1, target)).sum()
    exponents = logits.sub_(largest).exp_()
    partition = exponents.sum(1, keepdim=True)
    loss += partition.log().sum()
    exponents.div_(partition).scatter_add_(1, target, exponents.new_full(target.shape, -1.0))
    return loss


def slice_rows(columns: int) -> int:
    """Rows of a float32 matrix with so many columns that are added to at once on a CPU."""
    return max(1, SLICE_BYTES // (4 * columns))


def _cuda_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, prior: Prior | None, grad_hidden: Tensor, grad_weight: Tensor
) -> Tensor:
    """The summed loss of one chunk; writes its `grad_hidden` and adds to `grad_weight`.

    A function of its own so that all its buffers are gone before the next chunk makes new ones.
    """
    loss, gradient = _fused_gradient(_logits(hidden, weight, prior), targets.unsqueeze(1), hidden.dtype)
    torch.mm(gradient, weight, out=grad_hidden)
    if hidden.dtype == torch.float32:
        grad_weight.addmm_(gradient.T, hidden)
    else:
        torch.addmm(grad_weight, gradient.T, hidden, out_dtype=torch.float32, out=grad_weight)
    return loss


def _cpu_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    prior: Prior | None,
    grad_hidden: Tensor,
    grad_weight: Tensor,
    scratch: Scratch,
) -> Tensor:
    """As `_cuda_loss`, in the two buffers of `scratch` and, in bf16, by slices of the weight's gradient."""
    product, logits = (buffer[: len(hidden)] for buffer in scratch)
    logits.copy_(torch.mm(hidden, weight.T, out=product))
    if prior:
        prior.add_to(logits)
    loss = _in_place_gradient(logits, targets.unsqueeze(1))
    torch.mm(product.copy_(logits), weight, out=grad_hidden)
    if hidden.dtype == torch.float32:
        grad_weight.addmm_(product.T, hidden)
    else:
        rows = slice_rows(weight.size(1))
        for total, gradient in zip(grad_weight.split(rows), product.T.split(rows), strict=True):
            total += gradient @ hidden
    return loss


def _scratch(hidden: Tensor, weight: Tensor) -> Scratch:
    """For the logits of a chunk in the dtype of their factors and in float32: one buffer where that is the same."""
    shape = min(len(hidden), chunk_tokens("cpu", len(weight))), len(weight)
    product = hidden.new_empty(shape)
    return product, product if product.dtype == torch.float32 else torch.empty(shape)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, prior: Prior | None) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        loss = _cuda_loss if hidden.is_cuda else partial(_cpu_loss, scratch=_scratch(hidden, weight))
        for chunk in _chunks(hidden, weight):
            of_chunk = prior and prior.of(chunk)
            total += loss(hidden[chunk], weight, targets[chunk], of_chunk, grad_hidden[chunk], grad_weight)
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        # A factor without dimensions does not promote: bf16 gradients stay bf16.
        return grad_hidden * grad_output, grad_weight * grad_output, None, None


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, prior: Prior | None = None) -> Tensor:
    """The negative log-likelihood of `targets` summed over tokens, in nats, float32, differentiable.

    Args:
        hidden: (tokens, rank), the input of the last matrix product.
        weight: (vocabulary, rank), of the same dtype; the products are made in it, their sums in float32.
        targets: (tokens,) int64.
        prior: what is added to the logits, without a gradient.
    """
    return _SummedCrossEntropy.apply(hidden, weight, targets, prior)


def plain_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, prior: Prior | None = None) -> Tensor:
    """As `summed_cross_entropy`, by all logits at once and autograd, as most trainings do."""
    assert prior is None, "validation leaves a prior to the chunked loss"
    return F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")


@torch.no_grad()
def token_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, prior: Prior | None = None) -> Tensor:
    """The negative log-likelihood of each target in nats, float32 (tokens,); arguments as above."""
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for chunk in _chunks(hidden, weight):
        logits = _logits(hidden[chunk], weight, prior and prior.of(chunk))
        losses[chunk] = _chunk_token_losses(logits, targets[chunk].unsqueeze(1))
    return losses


def _chunk_token_losses(logits: Tensor, target: Tensor) -> Tensor:
    return logits.logsumexp(1) - logits.gather(1, target).squeeze(1)
