"""Attention over the packed row against a softmax written out for each segment in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yxanul.model.attention import TILE, attend, layout

CPU = torch.device("cpu")


def reference(q, k, v, starts):
    """Causal softmax attention, one segment and one head at a time."""
    group = q.size(1) // k.size(1)
    rows = []
    for begin, end in zip(starts, [*starts[1:], len(q)], strict=True):
        future = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
        heads = []
        for head in range(q.size(1)):
            scores = q[begin:end, head] @ k[begin:end, head // group].T / math.sqrt(q.size(2))
            heads.append(scores.masked_fill(future, -math.inf).softmax(1) @ v[begin:end, head // group])
        rows.append(torch.stack(heads, 1))
    return torch.cat(rows)


def starts_of(sequences, seq_len, document_starts):
    """Where segments begin: with every sequence, and with every document inside one."""
    return sorted({*range(0, sequences * seq_len, seq_len), *document_starts})


def random_starts(sequences, seq_len, seed):
    """Segment starts with about one document end in each sequence."""
    generator = torch.Generator().manual_seed(seed)
    documents = torch.randint(1, sequences * seq_len, (sequences,), generator=generator).tolist()
    return starts_of(sequences, seq_len, documents)


def random_qkv(num_tokens, heads, kv_heads, size, dtype, device=CPU):
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(num_tokens, count, size) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def outcome(function, q, k, v, where):
    """The output of attention and the gradients of q, k and v, for a fixed gradient of the output."""
    out = function(q, k, v, where)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view_as(out).to(out.device, out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), (q, k, v))]


def assert_attends_like_reference(num_tokens, seq_len, starts, heads, kv_heads, dtype, tolerance, device=CPU):
    q, k, v = random_qkv(num_tokens, heads, kv_heads, 8, dtype, device)
    exact = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    found = outcome(attend, q, k, v, layout(starts, num_tokens, seq_len, device))
    expected = outcome(reference, *exact, starts)
    for name, got, want in zip(("out", "q", "k", "v"), found, expected, strict=True):
        assert got.dtype == dtype
        error = (got.cpu().double() - want).abs().max() / want.abs().max().clamp(min=1e-3)
        assert error < tolerance, f"{name} is {error:.2g} off"


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(
    ("seq_len", "sequences"),
    [(8, 16), (8, 37), (16, 8), (16, 11), (32, 9), (48, 2), (48, 5), (100, 3), (128, 3), (129, 2), (768, 2)],
)
def test_equals_softmax_of_each_segment_forward_and_backward(seq_len, sequences, heads, kv_heads):
    """In float64, with document ends; most rows do not fill their last tile, and 48 and 100 do not divide one."""
    starts = random_starts(sequences, seq_len, seed=heads)
    assert_attends_like_reference(sequences * seq_len, seq_len, starts, heads, kv_heads, torch.float64, 1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize(("seq_len", "sequences"), [(8, 37), (32, 9), (128, 3), (768, 2), (1536, 2)])
def test_training_dtypes_stay_close_to_float64(seq_len, sequences, dtype, tolerance):
    starts = random_starts(sequences, seq_len, seed=1)
    assert_attends_like_reference(sequences * seq_len, seq_len, starts, 2, 1, dtype, tolerance)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_layout_equals_the_reference(data):
    """Whatever the length of sequences, their number and the documents in them."""
    seq_len = data.draw(st.integers(1, 2 * TILE), "seq_len")
    sequences = data.draw(st.integers(1, max(1, 300 // seq_len)), "sequences")
    documents = data.draw(st.sets(st.integers(0, sequences * seq_len - 1), max_size=6), "documents")
    starts = starts_of(sequences, seq_len, documents)
    assert_attends_like_reference(sequences * seq_len, seq_len, starts, 2, 1, torch.float64, 1e-10)


@pytest.mark.parametrize("seq_len", [8, 16, 32, 48, 64, 128])
def test_short_sequences_waste_less_than_one_sequence_of_each_tile(seq_len):
    """Tiles hold as many whole sequences as they can, and only the last is padded."""
    mask = layout(range(0, 20 * seq_len, seq_len), 20 * seq_len, seq_len, CPU).mask
    tiles, _, tile, _ = mask.shape
    assert tile % seq_len == 0 and TILE - seq_len < tile <= TILE
    assert (tiles - 1) * tile < 20 * seq_len <= tiles * tile


@pytest.mark.parametrize("seq_len", [16, 256])
def test_first_token_of_a_segment_sees_itself_alone(seq_len):
    """So the output there is its own value, and nothing is averaged in from before."""
    starts = random_starts(4, seq_len, seed=3)
    q, k, v = random_qkv(4 * seq_len, 2, 2, 8, torch.float64)
    out = attend(q, k, v, layout(starts, 4 * seq_len, seq_len, CPU))
    torch.testing.assert_close(out[starts], v[starts])


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize(("seq_len", "sequences"), [(8, 37), (48, 5), (128, 3), (768, 2)])
def test_cuda_equals_the_reference(seq_len, sequences, dtype, tolerance):
    starts = random_starts(sequences, seq_len, seed=1)
    device = torch.device("cuda")
    assert_attends_like_reference(sequences * seq_len, seq_len, starts, 4, 2, dtype, tolerance, device)
