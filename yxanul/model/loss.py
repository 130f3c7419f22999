"""Head and cross-entropy as one chunked operation that never holds the logits of a whole micro-batch.

At a vocabulary of 200,000, the float32 logits of 32k tokens are 26 GB. Here the gradient is computed in the
forward pass, chunk by chunk, so that only one chunk of logits lives at a time and nothing is recomputed.
"""

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Float32 logits held at once; large enough for full-speed matrix products."""


def _chunks(num_tokens: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for chunk in _chunks(len(targets), len(weight)):
            logits = (hidden[chunk] @ weight.T).float()
            target = targets[chunk].unsqueeze(1)
            # In place and with one exp: the vocabulary is wide, and passes over it cost as much as the products.
            largest = logits.amax(1, keepdim=True)
            total += (largest - logits.gather(1, target)).sum()
            exponents = logits.sub_(largest).exp_()
            partition = exponents.sum(1, keepdim=True)
            total += partition.log().sum()
            gradient = exponents.div_(partition)
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
            gradient = gradient.to(hidden.dtype)
            grad_hidden[chunk] = gradient @ weight
            if grad_weight.dtype == gradient.dtype:
                grad_weight.addmm_(gradient.T, hidden[chunk])
            else:
                grad_weight += gradient.T @ hidden[chunk]
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_output, grad_weight * grad_output, None


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of `targets` summed over tokens, in nats, float32, differentiable.

    Args:
        hidden: (tokens, rank), the input of the last matrix product.
        weight: (vocabulary, rank), of the same dtype; the products are made in it.
        targets: (tokens,) int64.
    """
    return _SummedCrossEntropy.apply(hidden, weight, targets)


@torch.no_grad()
def token_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of each target in nats, float32 (tokens,); arguments as above."""
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for chunk in _chunks(len(targets), len(weight)):
        logits = (hidden[chunk] @ weight.T).float()
        losses[chunk] = logits.logsumexp(1) - logits.gather(1, targets[chunk].unsqueeze(1)).squeeze(1)
    return losses
