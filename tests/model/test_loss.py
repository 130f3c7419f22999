"""The chunked cross-entropy against F.cross_entropy in float64, and its promise about memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yxanul.model import loss
from yxanul.model.loss import summed_cross_entropy, token_cross_entropy


def inputs(tokens, vocab, rank, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(tokens + vocab)
    hidden = torch.randn(tokens, rank, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, rank, generator=generator).mul(scale).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(vocab, (tokens,), generator=generator)


def reference(hidden, weight, targets, upstream=1.0):
    """The losses of the targets in float64, and the gradients of their sum times `upstream`."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    return losses.detach(), *torch.autograd.grad(losses.sum() * upstream, (hidden, weight))


def relative_error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("tokens_a_chunk", [0.5, 1, 7, 24, 25, 1000])
@pytest.mark.parametrize("upstream", [1.0, 1 / 8192])
def test_value_and_gradients_equal_cross_entropy(monkeypatch, tokens_a_chunk, upstream):
    """Whether a chunk is less than a token, divides the tokens, leaves a remainder, or holds them all."""
    tokens, vocab = 25, 300
    monkeypatch.setattr(loss, "CHUNK_BYTES", int(4 * vocab * tokens_a_chunk))
    hidden, weight, targets = inputs(tokens, vocab, 16)
    total = summed_cross_entropy(hidden, weight, targets)
    (total * upstream).backward()
    losses, grad_hidden, grad_weight = reference(hidden, weight, targets, upstream)

    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(losses.sum().item(), rel=1e-6)
    assert relative_error(hidden.grad, grad_hidden) < 1e-5
    assert relative_error(weight.grad, grad_weight) < 1e-5
    torch.testing.assert_close(token_cross_entropy(hidden, weight, targets).double(), losses, rtol=1e-5, atol=1e-5)


def test_a_vocabulary_of_200064_at_rank_128(monkeypatch):
    """The reference model's head, in chunks of 5, 5 and 2 tokens."""
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 200_064 * 5)
    hidden, weight, targets = inputs(12, 200_064, 128, scale=0.3)
    total = summed_cross_entropy(hidden, weight, targets)
    total.backward()
    losses, grad_hidden, grad_weight = reference(hidden, weight, targets)

    assert total.item() == pytest.approx(losses.sum().item(), rel=1e-6)
    assert relative_error(hidden.grad, grad_hidden) < 1e-5
    assert relative_error(weight.grad, grad_weight) < 1e-5
    assert token_cross_entropy(hidden, weight, targets).sum().item() == pytest.approx(total.item(), rel=1e-6)


def test_bf16_inputs_stay_close(monkeypatch):
    """Products in bf16, everything else in float32: a loss accumulated in bf16 would be percents off."""
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 1000 * 10)
    hidden, weight, targets = inputs(400, 1000, 32, torch.bfloat16)
    total = summed_cross_entropy(hidden, weight, targets)
    total.backward()
    losses, grad_hidden, grad_weight = reference(hidden, weight, targets)

    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(losses.sum().item(), rel=1e-3)
    assert relative_error(hidden.grad, grad_hidden) < 1e-2
    assert relative_error(weight.grad, grad_weight) < 1e-2
    torch.testing.assert_close(token_cross_entropy(hidden, weight, targets).double(), losses, rtol=0, atol=0.1)


def test_large_logits_do_not_overflow():
    hidden, weight, targets = inputs(20, 50, 8, scale=1000.0)
    total = summed_cross_entropy(hidden, weight, targets)
    total.backward()
    losses, grad_hidden, _ = reference(hidden, weight, targets)
    assert total.item() == pytest.approx(losses.sum().item(), rel=1e-5)
    assert relative_error(hidden.grad, grad_hidden) < 1e-4


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest storage that any operation put out."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [summed_cross_entropy, token_cross_entropy])
def test_no_tensor_is_larger_than_a_chunk(monkeypatch, function, dtype):
    """All the logits would be fifty times that; forward and backward."""
    tokens, vocab = 500, 1000
    chunk = 4 * vocab * tokens // 50
    monkeypatch.setattr(loss, "CHUNK_BYTES", chunk)
    hidden, weight, targets = inputs(tokens, vocab, 4, dtype)
    with LargestTensor() as largest:
        total = function(hidden, weight, targets).sum()
        if total.requires_grad:
            total.backward()
    assert chunk // 2 <= largest.bytes <= chunk
