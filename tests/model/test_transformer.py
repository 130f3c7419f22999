"""The model by its properties: what may see what, packing without effect, and the start of training."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from yxanul.config import FeedForward, MuonConfig, Norm, OptimizerConfig, Positions
from yxanul.model import transformer
from yxanul.model.attention import sdpa
from yxanul.model.transformer import LayerNorm, Packed, RMSNorm, Transformer, recomputes, rotate
from yxanul.optim.build import build_optimizers
from yxanul.precision.linear import build_precision

CPU = torch.device("cpu")
VOCAB = 61
LLAMA = {"embedding_rank": 12}
GPT2 = {
    "norm": Norm.layernorm,
    "feed_forward": FeedForward.gelu,
    "positions": Positions.learned,
    "num_kv_heads": 4,
    "qk_norm": False,
}
VARIANTS = pytest.mark.parametrize("variant", [LLAMA, GPT2], ids=["llama", "gpt2"])


def pack(tokens, seq_len, documents=(), device=CPU):
    """Whole sequences of `seq_len` in one row, with documents beginning inside them."""
    starts = sorted({*range(0, len(tokens), seq_len), *documents})
    positions = torch.arange(len(tokens)) % seq_len
    return Packed(tokens, positions, sdpa(starts, len(tokens), seq_len)).map(lambda tensor: tensor.to(device))


def random_ids(count, seed=0, vocab=VOCAB):
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed))


def reference_losses(model, config, tokens, targets):
    """The losses of one sequence in float64, from the weights and the papers' formulas."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    count, size, half = len(tokens), config.hidden_size // config.num_heads, config.hidden_size // config.num_heads // 2
    table = weights["embedding.table"] @ weights.get("embedding.projection", torch.eye(config.hidden_size).double())
    angles = torch.arange(count).view(-1, 1, 1) * config.rope_theta ** (-torch.arange(half).double() / half)

    def rms_norm(x):
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()

    def norm(x, weight):
        return rms_norm(x - x.mean(-1, keepdim=True) if config.norm is Norm.layernorm else x) * weight

    def turn(x):
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), -1)

    def attention(x, block):
        q, k, v = (
            (block["attention.qkv.weight"] @ x.T)
            .T.view(count, -1, size)
            .split([config.num_heads, config.num_kv_heads, config.num_kv_heads], 1)
        )
        if config.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        if config.positions is Positions.rotary:
            q, k = turn(q), turn(k)
        k, v = (part.repeat_interleave(config.num_heads // config.num_kv_heads, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        shares = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", shares, v).reshape(count, -1) @ block["attention.out.weight"].T

    def feed_forward(x, block):
        if config.feed_forward is FeedForward.swiglu:
            gate, up = (x @ part.T for part in block["feed_forward.gate_up.weight"].chunk(2))
            inner = gate * gate.sigmoid() * up
        else:
            inner = x @ block["feed_forward.up.weight"].T
        if config.feed_forward is FeedForward.relu2:
            inner = inner.clamp(min=0) ** 2
        elif config.feed_forward is FeedForward.gelu:
            inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        return inner @ block["feed_forward.down.weight"].T

    x = table[tokens]
    if config.positions is Positions.learned:
        x = x + weights["positions.weight"][:count]
    for index in range(config.num_layers):
        prefix = f"blocks.{index}."
        block = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        x = x + attention(norm(x, block["attention_norm.weight"]), block)
        x = x + feed_forward(norm(x, block["feed_forward_norm.weight"]), block)
    logits = norm(x, weights["norm.weight"]) @ weights.get("embedding.head_table", table).T
    return -logits.log_softmax(-1)[range(count), targets]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    "variant",
    [
        *(LLAMA, GPT2, {**GPT2, "num_kv_heads": 1, "embedding_rank": 9}, {"norm_eps": 0.1}),
        *({"feed_forward": FeedForward.relu2}, {"tied": False}),
    ],
)
def test_equals_the_formulas_written_out(model_config, build_model, variant, qk_norm):
    config = model_config(**{**variant, "qk_norm": qk_norm})
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter is model.embedding.head_table:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(parameter)))
    tokens, targets = random_ids(40), random_ids(40, seed=1)
    losses = model.token_losses(pack(tokens, 40), targets).double()
    torch.testing.assert_close(losses, reference_losses(model, config, tokens, targets), rtol=1e-4, atol=1e-4)


@VARIANTS
@pytest.mark.parametrize(("seq_len", "documents"), [(16, (5, 32, 41)), (160, (70, 200))], ids=["tiles", "calls"])
def test_a_token_reaches_later_tokens_of_its_segment_and_nothing_else(
    model_config, build_model, variant, seq_len, documents
):
    """No leak from the future, nor across documents, sequences or tiles."""
    model = build_model(model_config(max_seq_len=seq_len, **variant))
    count = 20 * seq_len if seq_len == 16 else 3 * seq_len
    tokens, targets = random_ids(count), random_ids(count, seed=1)
    starts = sorted({*range(0, count, seq_len), *documents})
    before = model.token_losses(pack(tokens, seq_len, documents), targets)
    for place in (*random_ids(20, seed=2, vocab=count).tolist(), 0, 4, 5, count - 1):
        changed = tokens.clone()
        changed[place] = (tokens[place] + 1) % VOCAB
        difference = (model.token_losses(pack(changed, seq_len, documents), targets) - before).abs()
        end = next((start for start in starts if start > place), count)
        assert difference[:place].sum() + difference[end:].sum() < 1e-4
        assert (difference[place:end] > 1e-5).float().mean() > 0.9


@VARIANTS
@pytest.mark.parametrize(("seq_len", "sequences"), [(8, 37), (24, 7), (130, 2)])
def test_packed_sequences_equal_each_alone(model_config, build_model, variant, seq_len, sequences):
    """Loss and gradients of a packed row are those of its sequences one at a time."""
    model = build_model(model_config(max_seq_len=seq_len, **variant), init_std=0.1)
    tokens, targets = random_ids(seq_len * sequences), random_ids(seq_len * sequences, seed=1)

    together = model.token_losses(pack(tokens, seq_len), targets)
    model(pack(tokens, seq_len), targets).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for index, (row, target) in enumerate(zip(tokens.split(seq_len), targets.split(seq_len), strict=True)):
        alone = model.token_losses(pack(row, seq_len), target)
        torch.testing.assert_close(together[index * seq_len :][:seq_len], alone, rtol=1e-4, atol=1e-4)
        model(pack(row, seq_len), target).backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-4 * gradient.norm()


@VARIANTS
def test_forward_is_the_sum_of_token_losses_and_of_next_token_logits(model_config, build_model, variant):
    """Training, evaluation and sampling judge by the same probabilities; 128 entries need no padding."""
    model = build_model(model_config(**variant), vocab_size=128)
    tokens, targets = random_ids(48, vocab=128), random_ids(48, seed=1, vocab=128)
    packed = pack(tokens, 16, documents=(20,))
    losses = model.token_losses(packed, targets)
    assert model(packed, targets).item() == pytest.approx(losses.sum().item(), rel=1e-5)
    rows = torch.tensor([0, 17, 47])
    nats = -model.next_token_logits(packed, rows).log_softmax(1)[range(3), targets[rows]]
    torch.testing.assert_close(nats, losses[rows], rtol=1e-4, atol=1e-4)


def test_padding_of_the_vocabulary_is_never_offered(model_config, build_model):
    model = build_model(model_config())
    assert model.next_token_logits(pack(random_ids(8), 8), torch.tensor([7])).shape == (1, VOCAB)


@VARIANTS
def test_gradient_is_the_slope_of_the_loss(model_config, build_model, variant):
    """Along each parameter's own gradient, by central differences; every parameter has one."""
    model = build_model(model_config(num_layers=1, **variant), init_std=0.2)
    packed, targets = pack(random_ids(64), 16, documents=(20, 41)), random_ids(64, seed=1)
    model(packed, targets).backward()
    for name, parameter in model.named_parameters():
        slope = parameter.grad.norm().item()
        assert slope > 0, name
        direction, width = parameter.grad / slope, 2e-3
        with torch.no_grad():
            losses = []
            for shift in (width, -2 * width):
                parameter += shift * direction
                losses.append(model.token_losses(packed, targets).double().sum().item())
            parameter += width * direction
        assert (losses[0] - losses[1]) / (2 * width) == pytest.approx(slope, rel=0.02, abs=0.05), name


@pytest.mark.parametrize(("variant", "shifts"), [(LLAMA, True), (GPT2, False)], ids=["rotary", "learned"])
def test_rotary_positions_are_relative_and_learned_ones_absolute(model_config, build_model, variant, shifts):
    model = build_model(model_config(**variant))
    tokens, targets = random_ids(16), random_ids(16, seed=1)
    packed = pack(tokens, 16)
    moved = model.token_losses(replace(packed, positions=packed.positions + 30), targets)
    doubled = model.token_losses(replace(packed, positions=packed.positions * 3), targets)
    original = model.token_losses(packed, targets)
    assert torch.allclose(moved, original, atol=2e-3) == shifts
    assert not torch.allclose(doubled, original, atol=2e-3)


def test_rotate_is_a_complex_rotation():
    """Of the pairs (i, i + half), each by its angle."""
    x = torch.randn(5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = torch.linspace(0, 7, 20, dtype=torch.float64).view(5, 1, 4)
    rotated = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(
        rotate(x, (angles.cos(), angles.sin())), torch.cat((rotated.real, rotated.imag), -1), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_norms_follow_their_formula_with_float32_statistics(kind, dtype):
    """A bf16 mean of squares of 4096 numbers would be far off; only the result is rounded."""
    norm = kind(4096, 1e-5)
    nn.init.uniform_(norm.weight, 0.5, 2)
    x = (3 + 2 * torch.randn(6, 4096, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = x.double()
    if kind is LayerNorm:
        exact = exact - exact.mean(1, keepdim=True)
    expected = exact / (exact.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), expected.to(dtype), rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-5)


@VARIANTS
def test_initialization_has_the_stated_deviations(model_config, build_model, variant):
    """Residual projections 1/sqrt(2 layers) of the others, norms one, within five sampling errors."""
    model = build_model(model_config(num_layers=8, **variant), vocab_size=1000, init_std=0.05)
    residual = {id(layer.weight) for block in model.blocks for layer in (block.attention.out, block.feed_forward.down)}
    assert len(residual) == 16
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            expected = 0.05 / 4 if id(parameter) in residual else 0.05
            error = 5 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(expected, rel=error), name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name


def test_the_seed_decides_the_weights(model_config, build_model):
    first, again, other = (build_model(model_config(**LLAMA), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim == 2)


@VARIANTS
@pytest.mark.parametrize("vocab", [1000, 5000])
def test_training_starts_from_the_uniform_guess(model_config, build_model, variant, vocab):
    """Over the padded vocabulary, for the padding takes part in the softmax."""
    model = build_model(model_config(**variant), vocab_size=vocab, init_std=0.02)
    loss = model(pack(random_ids(512, vocab=vocab), 16), random_ids(512, seed=1, vocab=vocab)).item() / 512
    assert loss == pytest.approx(math.log(len(model.embedding.table)), abs=0.05)


def test_a_head_of_its_own_begins_at_zero_and_learns_first(model_config, build_model):
    """The first guess is exactly uniform; after one step of the head alone every parameter has a gradient."""
    model = build_model(model_config(tied=False), vocab_size=1000)
    tied = build_model(model_config(), vocab_size=1000).state_dict()
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in tied.items())
    packed, targets = pack(random_ids(64), 16), random_ids(64, seed=1)
    with_gradient = []
    for _ in range(2):
        model.zero_grad()
        loss = model(packed, targets) / 64
        loss.backward()
        with_gradient.append({name for name, parameter in model.named_parameters() if parameter.grad.any()})
        if len(with_gradient) == 1:
            assert loss.item() == pytest.approx(math.log(1024), rel=1e-6)
        with torch.no_grad():
            model.embedding.head_table -= model.embedding.head_table.grad
    assert with_gradient == [{"embedding.head_table"}, {name for name, _ in model.named_parameters()}]
    assert model(packed, targets).item() / 64 < loss.item() < math.log(1024)


def one_step(model, device, tokens, targets, optimizer):
    """Loss before and after one optimizer step, and the gradients."""
    model = copy.deepcopy(model).to(device)
    packed, targets = pack(tokens, 32, documents=(40,), device=device), targets.to(device)
    before = model(packed, targets)
    (before / len(tokens)).backward()
    gradients = [parameter.grad.cpu().double() for parameter in model.parameters()]
    for each in build_optimizers(model, optimizer):
        each.step()
    return before.item() / len(tokens), model(packed, targets).item() / len(tokens), gradients


@VARIANTS
@pytest.mark.parametrize("how", ["recomputed", "half recomputed", "memory is dear"])
def test_what_is_computed_again_gives_the_same_gradient_and_keeps_less(
    model_config, build_model, monkeypatch, variant, how
):
    """To the last bit; what autograd keeps is counted by its storages."""
    config = model_config(**variant, num_layers=4)
    tokens = random_ids(96)

    def train(model):
        kept = {}

        def pack_hook(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
            loss = model(pack(tokens, 16), tokens.roll(-1))
        loss.backward()
        return sum(kept.values()), [parameter.grad for parameter in model.parameters()]

    plain, expected = train(build_model(config))
    again = build_model(config)
    share = {"recomputed": 1.0, "half recomputed": 0.5, "memory is dear": 0.0}[how]
    for layer, block in enumerate(again.blocks):
        block.recompute = recomputes(share, layer)
    monkeypatch.setattr(transformer, "memory_is_dear", lambda x: how == "memory is dear")
    kept, found = train(again)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert kept < 0.95 * plain


@pytest.mark.parametrize(("share", "expected"), [(0, []), (0.25, [3, 7]), (0.5, [1, 3, 5, 7]), (1, list(range(8)))])
def test_layers_that_compute_again_are_evenly_spread(share, expected):
    assert [layer for layer in range(8) if recomputes(share, layer)] == expected


@pytest.mark.gpu
@VARIANTS
@pytest.mark.parametrize("muon", [None, MuonConfig(lr=0.02, momentum=0.95, weight_decay=0.0, iterations=5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 4e-2)])
def test_a_training_step_on_cuda_agrees_with_the_cpu(model_config, precision_of, variant, muon, dtype, tolerance):
    """The CPU computes in float32; loss, gradients and the loss after the step."""
    config = model_config(**variant)
    weights = None
    outcomes = []
    for device, kind in ((CPU, "fp32"), (torch.device("cuda"), dtype)):
        precision = build_precision(precision_of(kind), device)
        model = Transformer(config, 1000, precision.linear, precision.dtype)
        model.initialize(0.05, torch.Generator().manual_seed(0))
        weights = weights or model.state_dict()
        model.load_state_dict(weights)
        optimizer = OptimizerConfig(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, muon=muon)
        ids = random_ids(513, vocab=1000)
        outcomes.append(one_step(model, device, ids[:512], ids[1:], optimizer))
    (before, after, gradients), (cuda_before, cuda_after, cuda_gradients) = outcomes
    assert after < before
    assert cuda_before == pytest.approx(before, rel=tolerance / 10)
    assert cuda_after - cuda_before == pytest.approx(after - before, rel=5 * tolerance)
    for mine, theirs in zip(gradients, cuda_gradients, strict=True):
        assert (mine - theirs).norm() <= tolerance * mine.norm()
