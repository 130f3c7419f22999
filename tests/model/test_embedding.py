"""The tied embedding against its definition: a product with one-hot vectors, and its transpose as the head."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from yxanul.model.embedding import Embedding, padded_vocab

VOCAB, HIDDEN = 200, 24


@pytest.fixture(params=[None, 5], ids=["full", "rank5"])
def embedding(request):
    torch.manual_seed(0)
    module = Embedding(VOCAB, HIDDEN, request.param, True, torch.float32)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def full_table(embedding):
    """The (vocabulary, hidden) matrix that a factorization stands for."""
    table = embedding.table.double()
    return table if embedding.projection is None else table @ embedding.projection.double()


@given(st.integers(1, 10**6))
def test_padding_is_the_least_that_aligns(vocab):
    assert padded_vocab(vocab) % 128 == 0
    assert vocab <= padded_vocab(vocab) < vocab + 128


def test_lookup_is_a_row_of_the_product(embedding):
    tokens = torch.tensor([3, 0, 199, 3])
    expected = F.one_hot(tokens, padded_vocab(VOCAB)).double() @ full_table(embedding)
    torch.testing.assert_close(embedding(tokens).double(), expected, rtol=1e-5, atol=1e-5)


def test_head_is_the_transpose_of_the_lookup(embedding):
    hidden = torch.randn(7, HIDDEN)
    inner, weight = embedding.head(hidden)
    expected = hidden.double() @ full_table(embedding).T
    assert inner.shape == (7, embedding.table.shape[1])
    torch.testing.assert_close((inner @ weight.T).double(), expected, rtol=1e-4, atol=1e-4)


def test_one_table_learns_from_lookup_and_head(embedding):
    """The gradient of a function of both is the sum of their gradients: the weights are the same."""
    tokens, hidden = torch.tensor([1, 2]), torch.randn(3, HIDDEN)

    def lookup():
        return embedding(tokens).square().sum()

    def head():
        inner, weight = embedding.head(hidden)
        return (inner @ weight.T).square().sum()

    parameters = list(embedding.parameters())
    from_lookup, from_head = (torch.autograd.grad(function(), parameters) for function in (lookup, head))
    both = torch.autograd.grad(lookup() + head(), parameters)
    for one, other, total in zip(from_lookup, from_head, both, strict=True):
        assert one.norm() > 0 and other.norm() > 0
        torch.testing.assert_close(one + other, total)


def test_a_head_of_its_own_shares_nothing_with_the_lookup():
    torch.manual_seed(0)
    embedding = Embedding(VOCAB, HIDDEN, None, False, torch.float32)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(7, HIDDEN)
    inner, weight = embedding.head(hidden)
    torch.testing.assert_close(inner @ weight.T, hidden @ embedding.head_table.T)
    for used, unused, of in (
        (embedding.table, embedding.head_table, embedding(torch.tensor([1, 2]))),
        (embedding.head_table, embedding.table, inner @ weight.T),
    ):
        gradient, none = torch.autograd.grad(of.square().sum(), [used, unused], allow_unused=True)
        assert gradient.norm() > 0 and none is None


def test_bf16_computes_in_bf16_and_learns_in_float32():
    torch.manual_seed(0)
    embedding = Embedding(VOCAB, HIDDEN, 5, True, torch.bfloat16)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.arange(VOCAB)
    rows = embedding(tokens)
    inner, weight = embedding.head(torch.randn(3, HIDDEN))
    assert {rows.dtype, inner.dtype, weight.dtype} == {torch.bfloat16}
    expected = full_table(embedding)[:VOCAB]
    assert (rows.double() - expected).norm() / expected.norm() < 0.01
    (rows.float().sum() + (inner @ weight.T).float().sum()).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in embedding.parameters())
