"""Predicted memory against real training steps, watched."""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from yxanul.benchmarking.memory import peak_bytes
from yxanul.config import CrossEntropyKernel, Dtype
from yxanul.curriculum import Step
from yxanul.model.attention import tile_tokens
from yxanul.model.cuda_attention import attentions
from yxanul.model.fused_loss import ON_REQUEST, cross_entropy_kernels
from yxanul.model.memory import state_bytes, training_bytes
from yxanul.model.transformer import Packed, Transformer
from yxanul.optim.build import build_optimizers
from yxanul.precision.linear import build_precision
from yxanul.training.compilation import compile_layers
from yxanul.training.distributed import World
from yxanul.training.parallel import accumulating, shard
from yxanul.training.step import Batch, add_gradient, update

CPU = torch.device("cpu")


SMALL = (
    "model.hidden_size=128",
    "model.num_layers=4",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.intermediate_size=352",
    "tokenizer.vocab_size=2048",
)
PLAIN = (
    *SMALL,
    "model.num_kv_heads=4",
    "model.qk_norm=false",
    "model.norm=layernorm",
    "model.feed_forward=gelu",
    "model.positions=learned",
)
UNTIED = (*SMALL, "model.tied=false", "tokenizer.vocab_size=20000")
MID_SIZE = (
    "model.hidden_size=512",
    "model.num_layers=9",
    "model.num_heads=8",
    "model.num_kv_heads=2",
    "model.intermediate_size=1408",
)


@dataclass(frozen=True)
class Case:
    """A training step of `tokens` in sequences of `seq_len`."""

    overrides: tuple[str, ...] = SMALL
    seq_len: int = 128
    tokens: int = 1024
    precision: str = "fp32"
    optimizer: str = "muon"
    compiled: bool = False
    device: str = "cpu"
    attention: str = "sdpa"
    shards: int = 1


CASES = {
    **{f"{dtype.value}, length {n}": Case(seq_len=n, precision=dtype.value) for dtype in Dtype for n in (8, 96, 512)},
    **{f"products, length {n}": Case(seq_len=n, precision="bf16", attention="bmm") for n in (8, 96, 256, 600)},
    "one long sequence": Case(seq_len=2048, tokens=2048),
    "products, one long sequence": Case(seq_len=2048, tokens=2048, precision="bf16", attention="bmm"),
    "emulated fp8": Case(precision="fp8"),
    "adamw": Case(optimizer="adamw"),
    "without qk-norm": Case((*SMALL, "model.qk_norm=false"), precision="bf16"),
    "recomputed": Case((*SMALL, "hardware.recompute=1")),
    "recomputed, bf16": Case((*SMALL, "hardware.recompute=1"), precision="bf16"),
    "half recomputed": Case((*SMALL, "hardware.recompute=0.5"), seq_len=512),
    "gpt2": Case(PLAIN, optimizer="adamw"),
    "gpt2, bf16": Case(PLAIN, precision="bf16", optimizer="adamw", seq_len=256),
    "gpt2, recomputed": Case((*PLAIN, "hardware.recompute=1"), optimizer="adamw"),
    "relu squared": Case((*SMALL, "model.feed_forward=relu2")),
    "relu squared, bf16": Case((*SMALL, "model.feed_forward=relu2"), precision="bf16"),
    "relu squared, recomputed": Case((*SMALL, "model.feed_forward=relu2", "hardware.recompute=1")),
    "untied": Case((*SMALL, "model.tied=false")),
    "large untied tables and few tokens": Case(UNTIED, tokens=64, seq_len=64),
    "large untied tables, bf16": Case(UNTIED, tokens=256, precision="bf16"),
    "four shares of large untied tables": Case(UNTIED, tokens=256, shards=4),
    "large factorized table": Case((*SMALL, "model.embedding_rank=32", "tokenizer.vocab_size=40000")),
    "large factorized table, bf16": Case(
        (*SMALL, "model.embedding_rank=32", "tokenizer.vocab_size=40000"), precision="bf16"
    ),
    "large table and few tokens": Case((*SMALL, "tokenizer.vocab_size=20000"), tokens=64, seq_len=64),
    "large table, bf16": Case((*SMALL, "tokenizer.vocab_size=20000"), tokens=256, precision="bf16"),
    "plain loss": Case((*SMALL, "cross_entropy=plain", "tokenizer.vocab_size=20000"), tokens=1024),
    "plain loss, bf16": Case(
        (*SMALL, "cross_entropy=plain", "tokenizer.vocab_size=20000"), tokens=1024, precision="bf16"
    ),
    "two shares": Case((*SMALL, "model.num_layers=12"), tokens=128, shards=2),
    "eight shares, adamw, bf16": Case(
        (*SMALL, "model.num_layers=12"), tokens=128, precision="bf16", optimizer="adamw", shards=8
    ),
    "four shares of a large table": Case((*SMALL, "tokenizer.vocab_size=20000"), tokens=256, shards=4),
    "few tokens, so that Muon takes most": Case((*SMALL, "model.hidden_size=256"), tokens=32, seq_len=32),
}


def train(case: Case, compose) -> tuple[int, int]:
    """Predicted and measured peak bytes of a whole optimizer step of two micro-batches."""
    base = ("model=nano", "tokenizer=bpe8k", f"precision={case.precision}", f"optimizer={case.optimizer}")
    config = compose(*base, *case.overrides)
    device = torch.device(case.device)
    before = torch.cuda.memory_allocated(device) if case.device == "cuda" else 0
    precision = build_precision(config.precision, device)
    vocab = config.tokenizer.vocab_size
    kernels = cross_entropy_kernels(device) | ON_REQUEST
    loss = kernels["chunked" if config.cross_entropy is CrossEntropyKernel.auto else config.cross_entropy.value]
    model = Transformer(
        config.model, vocab, precision.linear, precision.dtype, loss, recompute=config.hardware.recompute
    ).to(device)
    model.initialize(config.model.init_std, torch.Generator(device).manual_seed(0))
    world = World(0, 0, case.shards)
    if case.shards > 1:
        shard(model, device, world)
    calls = accumulating(model, world)
    if case.compiled:
        torch._dynamo.reset()  # what other tests compiled counts against the limit of recompilations
        compile_layers(model)
    optimizers = build_optimizers(model, config.optimizer, precision.dtype)
    kernels = attentions(device, precision.dtype)
    attention = kernels.get("varlen", kernels.get("flex", kernels[case.attention]))
    tokens = torch.randint(vocab, (case.tokens,), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(case.tokens) % case.seq_len
    tile = tile_tokens(case.seq_len) if case.attention == "bmm" else 0
    layout = attention(range(0, case.tokens, case.seq_len), case.tokens, case.seq_len)
    batch = Batch(Packed(tokens, positions, layout), tokens.roll(-1), case.tokens).map(lambda x: x.to(device))
    plan = Step(0, 0, case.seq_len, (1, 1), 0, 2 * case.tokens, 1e-3, 1.0)

    def step() -> None:
        nats = sum(add_gradient(calls(last), batch, 2 * case.tokens) for last in (False, True))
        update(model, optimizers, plan, nats, 1)
        model.zero_grad()

    step()
    state = [x for o in optimizers for of_weight in o.state.values() for x in of_weight.values()]
    held = [here(tensor) for tensor in (*model.parameters(), *model.buffers(), *state)]
    measured = peak_bytes(step, device, held) - before
    dtype = Dtype.bf16 if precision.dtype is torch.bfloat16 else Dtype.fp32
    return training_bytes(config, dtype, case.device, case.compiled, case.tokens, tile, case.shards), measured


def here(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.fixture
def others(case):
    """The other processes that hold shares of the model: they answer at once, and nonsense."""
    if case.shards == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=case.shards, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_training_bytes_are_the_peak_of_a_real_step(monkeypatch, compose, case):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    predicted, measured = train(case, compose)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [0, 1])
@pytest.mark.parametrize("kind", [SMALL, PLAIN], ids=["llama", "gpt2"])
def test_training_bytes_of_compiled_layers(monkeypatch, compose, kind, recompute, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    case = Case((*kind, f"hardware.recompute={recompute}"), tokens=4096, precision=precision, compiled=True)
    predicted, measured = train(case, compose)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_training_bytes_of_the_reference_model(monkeypatch, compose):
    """2048 tokens at a vocabulary of 200,005; takes a minute or two and 7 GB."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    case = Case(("model=yxanul_197m", "tokenizer.vocab_size=200005"), tokens=2048, seq_len=512, precision="bf16")
    predicted, measured = train(case, compose)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("recompute", [0, 1])
def test_training_bytes_on_a_gpu(compose, recompute, optimizer, precision, compiled):
    overrides = (*MID_SIZE, f"hardware.recompute={recompute}")
    case = Case(overrides, 512, 8192, precision, optimizer, compiled, "cuda")
    predicted, measured = train(case, compose)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", [SMALL, PLAIN, (*SMALL, "model.tied=false")], ids=["llama", "gpt2", "untied"])
def test_state_bytes_are_those_of_weights_gradients_and_moments(compose, precision_of, kind, optimizer):
    config = compose("model=nano", "tokenizer=bpe8k", f"optimizer={optimizer}", *kind)
    precision = build_precision(precision_of("fp32"), CPU)
    model = Transformer(config.model, 2048, precision.linear, precision.dtype)
    for parameter in model.parameters():
        parameter.data.zero_()
        parameter.grad = torch.zeros_like(parameter)
    optimizers = build_optimizers(model, config.optimizer)
    for built in optimizers:
        built.step()
    moments = [x for built in optimizers for state in built.state.values() for x in state.values() if x.ndim]
    held = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *moments]
    assert state_bytes(config) == 4 * sum(tensor.numel() for tensor in held)
