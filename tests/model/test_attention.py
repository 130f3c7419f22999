"""Attention over the packed row against a softmax written out for each segment in float64."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from yxanul.model import cuda_attention
from yxanul.model.attention import TILE, bmm, sdpa
from yxanul.model.cuda_attention import attentions, block_mask, flex

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def reference(starts, q, k, v):
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


def outcome(attend, q, k, v):
    """The output of attention and the gradients of q, k and v, for a fixed gradient of the output."""
    out = attend(q, k, v)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view_as(out).to(out.device, out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), (q, k, v))]


def assert_attends_like_reference(
    num_tokens, seq_len, starts, heads, kv_heads, dtype, tolerance, device=CPU, attention=sdpa, size=8
):
    q, k, v = random_qkv(num_tokens, heads, kv_heads, size, dtype, device)
    exact = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    found = outcome(attention(starts, num_tokens, seq_len).map(lambda tensor: tensor.to(device)).attend, q, k, v)
    expected = outcome(partial(reference, starts), *exact)
    for name, got, want in zip(("out", "q", "k", "v"), found, expected, strict=True):
        assert got.dtype == dtype
        error = (got.cpu().double() - want).abs().max() / want.abs().max().clamp(min=1e-3)
        assert error < tolerance, f"{name} is {error:.2g} off"


@pytest.mark.parametrize("attention", [sdpa, bmm])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(
    ("seq_len", "sequences"),
    [(8, 16), (8, 37), (16, 11), (32, 9), (48, 5), (100, 3), (128, 3), (129, 2), (768, 2), (1536, 2), (2048, 2)],
)
def test_equals_softmax_of_each_segment_forward_and_backward(seq_len, sequences, heads, kv_heads, attention):
    """In float64, with document ends; most rows do not fill their last tile, and 48 and 100 do not divide one."""
    starts = random_starts(sequences, seq_len, seed=heads)
    size = sequences * seq_len
    assert_attends_like_reference(size, seq_len, starts, heads, kv_heads, torch.float64, 1e-10, attention=attention)


@pytest.mark.parametrize("attention", [sdpa, bmm])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize(("seq_len", "sequences"), [(8, 37), (16, 11), (32, 9), (128, 3), (768, 2), (2048, 2)])
def test_training_dtypes_stay_close_to_float64(seq_len, sequences, dtype, tolerance, attention):
    starts = random_starts(sequences, seq_len, seed=1)
    assert_attends_like_reference(sequences * seq_len, seq_len, starts, 2, 1, dtype, tolerance, attention=attention)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_layout_equals_the_reference(data):
    """Whatever the length of sequences, their number and the documents in them."""
    seq_len = data.draw(st.integers(1, 2 * TILE), "seq_len")
    sequences = data.draw(st.integers(1, max(1, 300 // seq_len)), "sequences")
    documents = data.draw(st.sets(st.integers(0, sequences * seq_len - 1), max_size=6), "documents")
    starts = starts_of(sequences, seq_len, documents)
    size, attention = sequences * seq_len, data.draw(st.sampled_from([sdpa, bmm]), "attention")
    assert_attends_like_reference(size, seq_len, starts, 2, 1, torch.float64, 1e-10, attention=attention)


@pytest.mark.parametrize("seq_len", [8, 16, 32, 48, 64, 128])
def test_short_sequences_waste_less_than_one_sequence_of_each_tile(seq_len):
    """Tiles hold as many whole sequences as they can, and only the last is padded."""
    mask = sdpa(range(0, 20 * seq_len, seq_len), 20 * seq_len, seq_len).mask
    tiles, _, tile, _ = mask.shape
    assert tile % seq_len == 0 and TILE - seq_len < tile <= TILE
    assert (tiles - 1) * tile < 20 * seq_len <= tiles * tile


@pytest.mark.parametrize("seq_len", [16, 256])
def test_first_token_of_a_segment_sees_itself_alone(seq_len):
    """So the output there is its own value, and nothing is averaged in from before."""
    starts = random_starts(4, seq_len, seed=3)
    q, k, v = random_qkv(4 * seq_len, 2, 2, 8, torch.float64)
    out = sdpa(starts, 4 * seq_len, seq_len).attend(q, k, v)
    torch.testing.assert_close(out[starts], v[starts])


# Kernels for CUDA


def test_a_cpu_has_the_portable_kernels_alone():
    assert attentions(CPU, torch.float32) == {"sdpa": sdpa}
    assert attentions(CPU, torch.bfloat16) == {"sdpa": sdpa, "bmm": bmm}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_block_mask_is_the_one_that_every_pair_of_tokens_gives(data):
    """Against torch's own, which evaluates the mask for all pairs; a block is full only if all of its pairs are in."""
    num_tokens = data.draw(st.integers(1, 700), "tokens")
    starts = sorted({0, *data.draw(st.sets(st.integers(0, num_tokens - 1), max_size=5), "starts")})
    segments = flex(starts, num_tokens, num_tokens).segments
    ours = block_mask(segments)
    theirs = create_block_mask(ours.mask_mod, None, None, num_tokens, num_tokens, device="cpu")
    assert ours.seq_lengths == theirs.seq_lengths and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, expected = (getattr(mask, f"{kind}_num_blocks") for mask in (ours, theirs))
        assert torch.equal(counts, expected), kind
        for row in range(counts.size(-1)):
            mine, other = (getattr(mask, f"{kind}_indices")[0, 0, row, : counts[0, 0, row]] for mask in (ours, theirs))
            assert torch.equal(mine, other), kind


@pytest.mark.parametrize(("seq_len", "sequences"), [(8, 37), (768, 2)])
def test_flex_attention_equals_the_reference_forward(seq_len, sequences, monkeypatch):
    """Uncompiled, as it can run on a CPU; its backward exists on CUDA alone."""
    monkeypatch.setattr(cuda_attention, "compiled_flex", lambda: flex_attention)
    starts = random_starts(sequences, seq_len, seed=1)
    q, k, v = (x.detach() for x in random_qkv(sequences * seq_len, 4, 2, 8, torch.float64))
    out = flex(starts, len(q), seq_len).attend(q, k, v)
    torch.testing.assert_close(out, reference(starts, q, k, v))


def test_a_variable_length_kernel_gets_every_boundary():
    """It is handed the segments' boundaries with the row's end, and the sequence length as the longest."""
    layout = cuda_attention.boundaries(lambda *arguments: arguments, [0, 5, 8], 11, 8)
    *_, boundaries, longest = layout.attend(*random_qkv(11, 2, 1, 8, torch.float32))
    assert boundaries.tolist() == [0, 5, 8, 11] and boundaries.dtype == torch.int32 and longest == 8


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sdpa", "flex", "varlen", "flash"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-2), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize(
    ("seq_len", "sequences"), [(8, 512), (16, 256), (32, 130), (128, 40), (768, 6), (1536, 3), (2048, 2)]
)
def test_cuda_kernels_equal_the_reference(seq_len, sequences, dtype, tolerance, name):
    """Forward and backward, with document ends; 1e-2 in float32 allows for products in TF32."""
    kernels = attentions(CUDA, dtype)
    if name not in kernels:
        pytest.skip(f"{name} cannot run here in {dtype}")
    starts = random_starts(sequences, seq_len, seed=1)
    assert_attends_like_reference(
        sequences * seq_len, seq_len, starts, 12, 2, dtype, tolerance, CUDA, kernels[name], size=64
    )
