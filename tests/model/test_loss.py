"""Head and cross-entropy, chunked and fused, against F.cross_entropy in float64, and their promise about memory."""

import itertools
import json
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yxanul.model import fused_loss, loss
from yxanul.model.embedding import Embedding
from yxanul.model.fused_loss import cross_entropy_kernels, liger_budget
from yxanul.model.loss import plain_cross_entropy, summed_cross_entropy, token_cross_entropy

VOCAB, RANK = 200_064, 128
"""The reference model's padded vocabulary, and the rank of its embedding."""

BF16 = (torch.bfloat16, 1e-4, 1e-2)
"""Error allowed to the loss, and to the gradients: a bf16 number is off by up to 0.4 percent by itself."""


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
    monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", int(4 * vocab * tokens_a_chunk))
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 1)
    hidden, weight, targets = inputs(tokens, vocab, 16)
    total = summed_cross_entropy(hidden, weight, targets)
    (total * upstream).backward()
    losses, grad_hidden, grad_weight = reference(hidden, weight, targets, upstream)

    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(losses.sum().item(), rel=1e-6)
    assert relative_error(hidden.grad, grad_hidden) < 1e-5
    assert relative_error(weight.grad, grad_weight) < 1e-5
    torch.testing.assert_close(token_cross_entropy(hidden, weight, targets).double(), losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "loss_error", "gradient_error"), [(torch.float32, 1e-6, 1e-5), BF16])
def test_the_plain_loss_is_the_same(dtype, loss_error, gradient_error):
    hidden, weight, targets = inputs(25, 300, 16, dtype, scale=0.3)
    total = plain_cross_entropy(hidden, weight, targets)
    (total / 25).backward()
    losses, grad_hidden, grad_weight = reference(hidden, weight, targets, 1 / 25)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(losses.sum().item(), rel=loss_error)
    assert relative_error(hidden.grad, grad_hidden) < gradient_error
    assert relative_error(weight.grad, grad_weight) < gradient_error


@pytest.mark.parametrize(("dtype", "loss_error", "gradient_error"), [(torch.float32, 1e-6, 1e-5), BF16])
def test_a_vocabulary_of_200064_at_rank_128(monkeypatch, dtype, loss_error, gradient_error):
    """The reference model's head, in chunks of 25, 25 and 14 tokens."""
    monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", 4 * VOCAB * 25)
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 1)
    hidden, weight, targets = inputs(64, VOCAB, RANK, dtype, scale=0.3)
    total = summed_cross_entropy(hidden, weight, targets)
    total.backward()
    losses, grad_hidden, grad_weight = reference(hidden, weight, targets)

    assert total.item() == pytest.approx(losses.sum().item(), rel=loss_error)
    assert relative_error(hidden.grad, grad_hidden) < gradient_error
    assert relative_error(weight.grad, grad_weight) < gradient_error
    assert token_cross_entropy(hidden, weight, targets).sum().item() == pytest.approx(total.item(), rel=1e-6)


def in_place(logits, target, dtype):
    """The CPU's way with the same arguments and results as CUDA's."""
    return loss._in_place_gradient(logits, target), logits.to(dtype)


@pytest.mark.parametrize("gradient_of", [in_place, loss._fused_gradient])
def test_both_ways_to_the_gradient_are_right(gradient_of):
    """One is for the CPU, one for CUDA; from certain to hopeless tokens, and logits that would overflow an exp."""
    logits = inputs(40, 500, 16, scale=3.0)[0].detach() @ inputs(40, 500, 16, scale=3.0)[1].detach().T
    logits[0, 7], logits[1, 7], logits[2] = 400.0, -400.0, 1e4
    target = torch.full((40, 1), 7)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, target.squeeze(1), reduction="sum")
    expected.backward()
    total, gradient = gradient_of(logits.clone(), target, torch.float32)

    assert total.dtype == gradient.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-5, atol=1e-7)
    assert gradient_of(logits.clone(), target, torch.bfloat16)[1].dtype == torch.bfloat16


def test_bf16_inputs_stay_close(monkeypatch):
    """Products in bf16, everything else in float32: a loss accumulated in bf16 would be percents off."""
    monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", 4 * 1000 * 10)
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 1)
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
    monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", chunk)
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 1)
    hidden, weight, targets = inputs(tokens, vocab, 4, dtype)
    with LargestTensor() as largest:
        total = function(hidden, weight, targets).sum()
        if total.requires_grad:
            total.backward()
    assert chunk // 2 <= largest.bytes <= chunk


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations put out while they live, and their peak."""

    def __init__(self):
        super().__init__()
        self.seen, self.bytes, self.peak = weakref.WeakSet(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.bytes)
        return out

    def _count(self, storage):
        if storage not in self.seen:
            self.seen.add(storage)
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, nbytes):
        self.bytes -= nbytes


def head_and_loss(tokens, dtype, cross_entropy):
    """Forward and backward of the reference model's head, from its hidden states to the table's float32 gradient."""
    embedding = Embedding(VOCAB, 768, RANK, True, dtype)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    hidden = torch.randn(tokens, 768, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCAB, (tokens,))
    (cross_entropy(*embedding.head(hidden), targets) / tokens).backward()
    return embedding.table.grad


def live_bytes(tokens, dtype):
    """Peak bytes of `head_and_loss` on a CPU, with tensors that have sizes but no numbers."""
    with FakeTensorMode(), LiveBytes() as live:
        head_and_loss(tokens, dtype, summed_cross_entropy)
    return live.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_and_loss_of_65536_tokens_live_in_a_gib(dtype):
    """At full size, table and gradients included; the promise is 2 GiB, and CUDA's chunks take 0.5 GiB more."""
    assert live_bytes(65_536, dtype) < 2**30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_live_bytes_are_what_the_allocator_gives(tmp_path, dtype):
    """The count above against the profiler of a real run of three chunks; bf16 products take buffers inside."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        head_and_loss(200, dtype, summed_cross_entropy)
    profiler.export_chrome_trace(str(tmp_path / "trace"))
    events = json.loads((tmp_path / "trace").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    peak = max(itertools.accumulate(change for _, change in changes))
    inside = 0 if dtype == torch.float32 else 128 * 2**20
    assert 0 <= peak - live_bytes(200, dtype) <= inside + 2**20


def test_only_the_reference_runs_on_a_cpu():
    assert cross_entropy_kernels(torch.device("cpu")) == {"chunked": summed_cross_entropy}


def test_a_library_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert list(cross_entropy_kernels(torch.device("cuda"))) == ["chunked"]


@pytest.mark.parametrize("tokens", [1, 100, 512, 513, 4096, 65_536, 300_000])
@pytest.mark.parametrize(("vocab", "rank", "itemsize"), [(VOCAB, RANK, 2), (VOCAB, 768, 2), (61, 32, 4), (8192, 64, 4)])
def test_ligers_chunks_fill_the_budget(tokens, vocab, rank, itemsize):
    """By Liger's own formula: not over the budget, and not far below, unless the tokens end or Liger goes no lower."""
    budget = liger_budget(tokens, vocab, rank, itemsize)
    inner = -(-vocab // (budget * rank))
    chunk = min(tokens, 1 << (-(-tokens // inner) - 1).bit_length())
    filled = chunk * vocab * itemsize / fused_loss.CHUNK_BYTES["cuda"]
    assert filled <= 1 or budget == 1
    assert chunk == tokens or filled > 1 / 4


KERNELS = [pytest.param(name, marks=pytest.mark.gpu) for name in ("chunked", "liger")]


@pytest.fixture
def kernel(request):
    """A kernel by its name, on CUDA; skips where its library is not installed."""
    kernels = cross_entropy_kernels(torch.device("cuda"))
    if request.param not in kernels:
        pytest.skip(f"{request.param} is not installed")
    return kernels[request.param]


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
@pytest.mark.parametrize(("dtype", "loss_error", "gradient_error"), [(torch.float32, 1e-5, 1e-4), BF16])
def test_every_kernel_on_cuda_equals_float64(kernel, dtype, loss_error, gradient_error):
    """Over several chunks, with an upstream factor as training has it."""
    device, tokens = torch.device("cuda"), 1000
    hidden, weight, targets = (
        x.detach().to(device).requires_grad_(x.requires_grad) for x in inputs(tokens, VOCAB, RANK, dtype, scale=0.3)
    )
    total = kernel(hidden, weight, targets)
    (total / tokens).backward()
    losses, grad_hidden, grad_weight = reference(hidden, weight, targets, 1 / tokens)

    assert total.dtype == torch.float32 and total.shape == ()
    assert total.item() == pytest.approx(losses.sum().item(), rel=loss_error)
    assert relative_error(hidden.grad, grad_hidden) < gradient_error
    assert relative_error(weight.grad, grad_weight) < gradient_error
    assert token_cross_entropy(hidden, weight, targets).sum().item() == pytest.approx(total.item(), rel=loss_error)


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_and_loss_of_65536_tokens_take_less_than_2_gib_of_a_gpu(kernel, dtype):
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        gradient = head_and_loss(65_536, dtype, kernel)
    assert torch.cuda.max_memory_allocated() - before < 2 * 2**30
    assert gradient.isfinite().all() and gradient.any()
