"""The arithmetic of the plan against models that are really built, run and watched."""

from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from yxanul.config import FeedForward, ModelConfig, Norm, Positions
from yxanul.model import count
from yxanul.model.attention import Tiles, sdpa
from yxanul.model.transformer import Packed, Transformer

LLAMA = {"embedding_rank": 12}
GPT2 = {
    "norm": Norm.layernorm,
    "feed_forward": FeedForward.gelu,
    "positions": Positions.learned,
    "num_kv_heads": 4,
    "qk_norm": False,
}
VARIANTS = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "full-rank llama": {"num_kv_heads": 1},
    "factorized gpt2": {**GPT2, "embedding_rank": 5, "num_layers": 3, "max_seq_len": 100},
    "untied llama": {"tied": False},
    "untied gpt2 with relu squared": {**GPT2, "tied": False, "feed_forward": FeedForward.relu2},
}
REFERENCE = ModelConfig(
    hidden_size=768,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    intermediate_size=2048,
    embedding_rank=128,
    tied=True,
    max_seq_len=2048,
    norm=Norm.rmsnorm,
    norm_eps=1e-6,
    feed_forward=FeedForward.swiglu,
    positions=Positions.rotary,
    rope_theta=10000.0,
    qk_norm=False,
    init_std=0.02,
)
"""The reference model of DESIGN.md."""


def on_meta(config, vocab):
    """The model without memory for its weights."""
    with torch.device("meta"):
        return Transformer(config, vocab, partial(torch.nn.Linear, bias=False), torch.float32)


def numel(parameters):
    return sum(parameter.numel() for parameter in parameters)


def row(sequences, seq_len, vocab):
    """Full sequences in one row, and targets for it."""
    tokens = torch.randint(vocab, (sequences * seq_len,), generator=torch.Generator().manual_seed(0))
    starts = list(range(0, len(tokens), seq_len))
    positions = torch.arange(len(tokens)) % seq_len
    return Packed(tokens, positions, sdpa(starts, len(tokens), seq_len)), tokens.roll(-1)


@pytest.mark.parametrize("vocab", [61, 128, 1000])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_parameters_are_those_of_the_built_model(model_config, variant, vocab):
    config = model_config(**variant)
    model = on_meta(config, vocab)
    assert count.parameters(config, vocab) == numel(model.parameters())
    assert count.layer_parameters(config) == numel(model.blocks.parameters()) + numel(model.norm.parameters())
    matrices = [parameter for parameter in model.blocks[0].parameters() if parameter.ndim == 2]
    assert count.layer_matrix_parameters(config) == numel(matrices)


def test_the_reference_model_has_the_published_size():
    """196.4M parameters: 170.7M in the layers and 25.7M in the embedding of 200,005 entries."""
    model = on_meta(REFERENCE, 200_005)
    total, layers = count.parameters(REFERENCE, 200_005), count.layer_parameters(REFERENCE)
    assert total == numel(model.parameters())
    assert [round(number / 1e6, 1) for number in (total, layers, total - layers)] == [196.4, 170.7, 25.7]


def test_the_reference_model_has_the_published_work():
    """1.18 GFLOP a token for its parameters and about 0.26 for causal attention at 2048."""
    at_none, at_2048 = (count.training_flops_per_token(REFERENCE, 200_005, length) for length in (0, 2048))
    assert at_none == pytest.approx(1.18e9, rel=0.01)
    assert at_2048 - at_none == pytest.approx(0.26e9, rel=0.03)


@pytest.mark.parametrize("seq_len", [16, 96, 160])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_flops_are_those_that_a_training_step_dispatches(model_config, build_model, variant, seq_len):
    """Matrix products to the last one.

    The counter sees attention as two dense products over every tile or call, forward and twice that backward.
    We count the causal half of it with its diagonal, (seq_len + 1) / 2 keys a token: what the mathematics
    needs, whatever a kernel spends on masked places. So with one sequence a tile the two differ by the factor
    (seq_len + 1) / (2 * seq_len).
    """
    vocab, sequences = 1000, 2
    config = model_config(**{**variant, "max_seq_len": 160})
    model = build_model(config, vocab_size=vocab)
    packed, targets = row(sequences, seq_len, vocab)
    inplace = {torch.ops.aten.addmm_: lambda total, left, right, **_: 2 * left[0] * left[1] * right[1]}
    # The plain kernel is made of products that the counter sees, and counts no recomputation of a fused one.
    with FlopCounterMode(display=False, custom_mapping=inplace) as counter, sdpa_kernel(SDPBackend.MATH):
        model(packed, targets).backward()
    seen = {str(kind): flops for kind, flops in counter.get_flop_counts()["Global"].items()}
    attention = seen.pop("aten.bmm")
    assert set(seen) <= {"aten.mm", "aten.addmm", "aten.addmm_"}

    tokens = sequences * seq_len
    products = count.training_flops_per_token(config, vocab, -1)  # a sequence in which a token sees no key
    assert sum(seen.values()) == tokens * products
    masked = isinstance(packed.layout, Tiles)
    tile = packed.layout.mask.size(-1) if masked else seq_len
    keys = packed.layout.mask.numel() if masked else tokens * tile
    dense = keys * config.num_layers * 3 * 4 * config.hidden_size
    assert attention == dense
    causal = tokens * (count.training_flops_per_token(config, vocab, seq_len) - products)
    assert causal == pytest.approx(dense * (seq_len + 1) / 2 * tokens / keys)
