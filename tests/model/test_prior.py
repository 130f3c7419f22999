"""The prior in the model: logits, losses and gradients are those of the plain sum, whatever the chunks and segments."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from yxanul.data.ngrams import NGrams, count_ngrams
from yxanul.model import loss
from yxanul.model.attention import sdpa
from yxanul.model.loss import summed_cross_entropy, token_cross_entropy
from yxanul.model.prior import NGramPrior
from yxanul.model.transformer import Packed, Transformer

VOCAB, END = 61, 60
TOKENS = 48
BF16 = (torch.bfloat16, 1e-2, 1e-2)
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="module")
def trigrams() -> NGrams:
    generator = np.random.default_rng(0)
    words = generator.dirichlet(np.full(END, 0.3))
    row = generator.choice(END, size=4000, p=words)
    row[::50] = END
    return count_ngrams(row, VOCAB, END, 3)


@pytest.fixture
def packed() -> Packed:
    """Sequences of 16 tokens, one of them with the beginning of a document inside."""
    tokens = torch.randint(END, (TOKENS,), generator=torch.Generator().manual_seed(1)) % 5
    tokens[[0, 21]] = END
    return Packed(tokens, torch.arange(TOKENS) % 16, sdpa([0, 16, 21, 32], TOKENS, 16))


def context(packed: Packed, place: int, longest: int) -> list[int]:
    """The tokens up to `place` that its successor may be guessed from: of its sequence and its document."""
    seen = []
    for back in range(longest):
        if back > packed.positions[place]:
            break
        seen.insert(0, packed.tokens[place - back].item())
        if seen[0] == END:
            break
    return seen


def dense(ngrams: NGrams, packed: Packed) -> torch.Tensor:
    """The prior's logits, (tokens, vocabulary), a token and a level at a time."""
    logits = ngrams.bias.repeat(len(packed.tokens), 1)
    for place in range(len(packed.tokens)):
        seen = context(packed, place, len(ngrams.levels))
        for length, level in enumerate(ngrams.levels[: len(seen)], 1):
            key = 0
            for token in seen[-length:]:
                key = key << 6 | token
            for found in (level.contexts == key).nonzero().flatten().tolist():
                entries = slice(level.starts[found], level.starts[found + 1])
                logits[place, level.tokens[entries].long()] += level.values[entries]
    return logits


def test_each_token_sees_its_sequence_and_document_alone(trigrams, packed):
    logits = torch.zeros(TOKENS, VOCAB)
    NGramPrior(trigrams)(packed.tokens, packed.positions).add_to(logits)
    expected = dense(trigrams, packed)
    assert torch.allclose(logits, expected, atol=1e-6)
    seen = (expected - trigrams.bias).abs().amax(1) > 0.1
    assert 0.5 < seen.float().mean() < 1  # some contexts were never seen, most were


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("tokens_a_chunk", [1, 7, 48])
@pytest.mark.parametrize(("dtype", "of_loss", "of_gradient"), [(torch.float32, 1e-5, 1e-5), BF16])
def test_loss_and_gradients_are_of_the_sum(
    monkeypatch, trigrams, packed, device, tokens_a_chunk, dtype, of_loss, of_gradient
):
    monkeypatch.setitem(loss.CHUNK_BYTES, device, 4 * 128 * tokens_a_chunk)
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, 16, generator=generator).to(device, dtype).requires_grad_()
    weight = torch.randn(128, 16, generator=generator).to(device, dtype).requires_grad_()
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator).to(device)
    prior = NGramPrior(trigrams).to(device)(packed.tokens.to(device), packed.positions.to(device))
    summed_cross_entropy(hidden, weight, targets, prior).backward()

    wide, table = (x.detach().cpu().double().requires_grad_() for x in (hidden, weight))
    logits = wide @ table.T + F.pad(dense(trigrams, packed).double(), (0, 128 - VOCAB), value=-torch.inf)
    losses = F.cross_entropy(logits, targets.cpu(), reduction="none")
    losses.sum().backward()
    found = token_cross_entropy(hidden, weight, targets, prior).cpu()
    assert found.double().numpy() == pytest.approx(losses.detach().numpy(), rel=of_loss, abs=10 * of_loss)
    for mine, theirs in ((hidden.grad, wide.grad), (weight.grad, table.grad)):
        assert (mine.cpu().double() - theirs).norm() / theirs.norm() < of_gradient


@pytest.fixture
def models(model_config, build_model, trigrams) -> tuple[Transformer, Transformer]:
    """One without the prior and one with it, of the same weights."""
    without = build_model(model_config(), VOCAB)
    linear = lambda rows, columns: torch.nn.Linear(rows, columns, bias=False)  # noqa: E731
    with_prior = Transformer(model_config(), VOCAB, linear, torch.float32, ngrams=NGramPrior(trigrams))
    with_prior.load_state_dict(without.state_dict())  # strictly: the tables are no part of a checkpoint
    return without, with_prior


def test_the_model_adds_it_wherever_it_predicts(models, trigrams, packed):
    without, with_prior = models
    targets = packed.tokens.roll(-1)
    rows = torch.tensor([3, 20, 21, 47])
    logits = without.next_token_logits(packed, torch.arange(TOKENS)) + dense(trigrams, packed)
    assert torch.allclose(with_prior.next_token_logits(packed, rows), logits[rows], atol=1e-4)
    losses = F.cross_entropy(logits, targets, reduction="none")  # nothing is left to padding
    assert torch.allclose(with_prior.token_losses(packed, targets), losses, atol=1e-4)
    assert torch.allclose(with_prior.token_losses(packed, targets[rows], rows), losses[rows], atol=1e-4)
    assert with_prior(packed, targets).item() == pytest.approx(losses.sum().item(), rel=1e-5)
    assert not torch.allclose(with_prior.token_losses(packed, targets), without.token_losses(packed, targets), atol=0.1)
