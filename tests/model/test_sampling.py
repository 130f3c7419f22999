"""The choice of the next token: what can be chosen, and how often."""

import pytest
import torch

from yxanul.model.sampling import Sampling

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def drawn(sampling, rows=4000, logits=LOGITS):
    """How often each token is chosen."""
    chosen = sampling.choose(logits.repeat(rows, 1), torch.Generator().manual_seed(0))
    return torch.bincount(chosen, minlength=len(logits)) / rows


def test_zero_temperature_takes_the_likeliest():
    assert drawn(Sampling(temperature=0)).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Sampling(1.0, None, 1.0), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(1.0, 2, 1.0), [0.625, 0.375, 0, 0]),
        (Sampling(1.0, 50, 1.0), [0.5, 0.3, 0.15, 0.05]),  # more than there are
        (Sampling(1.0, None, 0.5), [1, 0, 0, 0]),  # the first reaches it
        (Sampling(1.0, None, 0.51), [0.625, 0.375, 0, 0]),
        (Sampling(1.0, None, 1e-9), [1, 0, 0, 0]),  # one is always left
        (Sampling(0.5, None, 1.0), [0.6849, 0.2466, 0.0616, 0.0068]),  # squares of the shares
        (Sampling(1.0, 3, 0.9), [0.5263, 0.3158, 0.1579, 0]),
    ],
)
def test_tokens_are_drawn_by_their_shares(sampling, shares):
    found = drawn(sampling)
    assert found.tolist() == pytest.approx(shares, abs=0.03)
    assert [share == 0 for share in shares] == (found == 0).tolist()


def test_what_cannot_come_never_does():
    logits = LOGITS.clone()
    logits[0] = -torch.inf
    for sampling in (Sampling(0), Sampling(5.0, None, 1.0), Sampling(1.0, 1, 0.1)):
        assert drawn(sampling, logits=logits)[0] == 0


def test_rows_are_drawn_apart():
    found = Sampling(1.0, None, 1.0).choose(torch.eye(4) * 100, torch.Generator().manual_seed(0))
    assert found.tolist() == [0, 1, 2, 3]
