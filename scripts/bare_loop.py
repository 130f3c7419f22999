"""Our training step against the same model written by hand: `python scripts/bare_loop.py [overrides]`.

Trains the quickstart's model three times with AdamW, each in a process of its own, in turns, so that a noisy machine
is noisy for all:

plain     as one writes it first: separate projections, the embedding's full logits, AdamW as it comes, documents
          cut to the length and padded to it; only real tokens count
by hand   as one writes it well: joint projections, (batch, length) tensors packed full, one causal kernel call,
          fused AdamW; still full logits
yxanul    the trainer as the command runs it: stream, packed rows, document ends, chunked loss, metrics, memory kept,
          and with hardware.compile=true compiled (the first step, which compiles, is far from the median)

Prints tokens/s of each at several sequence lengths, and the ratios (medians of the rounds' ratios).
"""

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import nn

from yxanul import config, hardware
from yxanul.composition import config_dir, parse, register
from yxanul.data.shards import Corpus
from yxanul.data.stream import Stream
from yxanul.kernels import attention_of, compiles
from yxanul.model.transformer import RMSNorm, Transformer, rotate
from yxanul.optim.build import build_optimizers
from yxanul.planning import make_plan
from yxanul.precision.linear import build_precision
from yxanul.tracking import Record, Tracker, read_rows
from yxanul.training.checkpoint import TrainState
from yxanul.training.compilation import compile_layers
from yxanul.training.evaluation import Score
from yxanul.training.loop import Trainer
from yxanul.training.signals import StopRequest
from yxanul.training.text import read_text

LENGTHS = (8, 64, 256, 512)
TOKENS, STEPS, ROUNDS = 2048, 6, 5


class PlainBlock(nn.Module):
    def __init__(self, model, linear):
        super().__init__()
        self.model, head_dim = model, model.hidden_size // model.num_heads
        self.norm1, self.norm2 = (RMSNorm(model.hidden_size, model.norm_eps) for _ in range(2))
        self.q, self.o = (linear(model.hidden_size, model.hidden_size) for _ in range(2))
        self.k, self.v = (linear(model.hidden_size, model.num_kv_heads * head_dim) for _ in range(2))
        self.gate, self.up = (linear(model.hidden_size, model.intermediate_size) for _ in range(2))
        self.down = linear(model.intermediate_size, model.hidden_size)

    def forward(self, x, rotation):
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (-1, x.size(-1) // self.model.num_heads)) for part in (self.q, self.k, self.v))
        x = x + self.o(causal(self.model, q, k, v, rotation))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Plain(nn.Module):
    def __init__(self, model, vocab_size, linear, dtype):
        super().__init__()
        self.table = nn.Embedding(vocab_size, model.hidden_size)
        nn.init.normal_(self.table.weight, std=model.init_std)
        self.blocks = nn.ModuleList(PlainBlock(model, linear) for _ in range(model.num_layers))
        self.norm, self.dtype = RMSNorm(model.hidden_size, model.norm_eps), dtype
        rotary = Transformer(replace(model, num_layers=0), 1, linear, dtype)
        self.cos, self.sin = rotary.cos, rotary.sin

    def forward(self, tokens, targets):
        x = self.table(tokens).to(self.dtype)
        for block in self.blocks:
            x = block(x, (self.cos[: tokens.size(1)], self.sin[: tokens.size(1)]))
        logits = F.linear(self.norm(x), self.table.weight.to(self.dtype))
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)


class ByHand(Transformer):
    """The same weights as ours."""

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        rotation = self.cos[: tokens.size(1)], self.sin[: tokens.size(1)]
        for block in self.blocks:
            layer = block.attention
            qkv = layer.qkv(block.attention_norm(x)).unflatten(-1, (-1, layer.head_dim))
            x = x + layer.out(causal(self.config, *qkv.split(layer.heads, dim=2), rotation))
            x = x + block._feed_forward(x)
        hidden, weight = self.embedding.head(self.norm(x))
        return F.cross_entropy((hidden @ weight.T).float().flatten(0, 1), targets.flatten(), ignore_index=-100)


def causal(model, q, k, v, rotation):
    """Causal attention over (batch, length, heads, head size); returns (batch, length, hidden)."""
    if model.qk_norm:
        q, k = (F.rms_norm(part, part.shape[-1:], eps=model.norm_eps) for part in (q, k))
    q, k, v = (part.transpose(1, 2) for part in (rotate(q, rotation), rotate(k, rotation), v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=model.num_heads != model.num_kv_heads)
    return out.transpose(1, 2).flatten(2)


def padded(corpus: Corpus, length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (batch, length) tokens and targets: each row a piece of one document, padding is no target."""
    shards, offsets = corpus.open()
    pieces = []
    for begin, end in cycle(
        (begin, end) for part in offsets for begin, end in zip(part[:-1].tolist(), part[1:].tolist(), strict=True)
    ):
        for start in range(begin, end - 1, length):
            piece = torch.from_numpy(shards[0][start : min(start + length + 1, end)].astype("int64"))
            pieces.append(F.pad(piece, (0, length + 1 - len(piece)), value=-1))
            if len(pieces) == TOKENS // length:
                rows = torch.stack(pieces)
                targets = rows[:, 1:]
                yield rows[:, :-1].clamp(min=0), targets.where(targets >= 0, -100)
                pieces = []


def packed(vocab_size: int, length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless full (batch, length) tokens and targets."""
    while True:
        tokens = torch.randint(vocab_size, (TOKENS // length, length))
        yield tokens, tokens.roll(-1, 1)


def loop_speed(model, optimizers, batches) -> float:
    """Median over STEPS steps of real tokens/s."""
    speeds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        tokens, targets = next(batches)
        model.zero_grad()
        loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        loss.item()
        speeds.append((targets >= 0).sum().item() / (time.perf_counter() - start))
    return statistics.median(speeds)


def trainer_speed(model, optimizers, length, stream, settings) -> float:
    """Median over STEPS steps of the trainer's tokens/s, from its own record."""
    device = torch.device("cpu")
    stage = config.Stage(length, TOKENS, 1.0, 1.0, 1.0)
    machine = replace(settings.hardware, micro_batch={str(length): TOKENS // length})
    run = replace(
        settings,
        curriculum=config.CurriculumConfig((stage,), None, None),
        train=replace(settings.train, steps=STEPS),
        hardware=replace(machine, peak_tflops=config.PeakConfig(1.0, 1.0)),
    )
    precision = build_precision(run.precision, device)
    plan = make_plan(run, device, precision)
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "metrics.jsonl"
        Trainer(
            model=model,
            optimizers=optimizers,
            stream=stream,
            steps=plan.steps,
            device=device,
            attention_of=attention_of(plan.kernels, device, precision.dtype),
            tracker=Tracker(Record(record), []),
            checkpoint_folder=Path(folder),
            checkpoint=replace(settings.checkpoint, every=10**9),
            evaluate_every=None,
            score=lambda: Score(0.0, 1.0),
            eval_bytes=0,
            flops_per_token=lambda seq_len: 0.0,
            peak_flops=1.0,
            max_bad_steps=1,
        ).train(TrainState(), StopRequest())
        return statistics.median(row["tokens_per_second"] for row in read_rows(record) if row["kind"] == "train")


def compose_run(overrides: list[str]) -> config.Config:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return parse(compose("train", ["experiment=quickstart", "optimizer=adamw", *overrides]))


def serve(kind: str, overrides: list[str], pipe: Connection) -> None:
    """Answer every sequence length that comes through the pipe with tokens/s."""
    settings = compose_run(overrides)
    text = read_text(settings, Console(quiet=True))
    vocab_size = text.tokenizer.vocab_size
    precision = build_precision(settings.precision, torch.device("cpu"))
    model = KINDS[kind](settings.model, vocab_size, precision.linear, precision.dtype)
    if kind == "plain":
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4)]
    else:
        model.initialize(settings.model.init_std, torch.Generator().manual_seed(0))
        model.config = settings.model
        optimizers = build_optimizers(model, settings.optimizer, precision.dtype)
    stream = Stream(text.corpus, settings.seed, text.tokenizer.byte_lengths)
    if kind == "yxanul":
        hardware.keep_freed_memory(torch.device("cpu"))
        if compiles(settings.hardware, torch.device("cpu")):
            compile_layers(model)
    while length := pipe.recv():
        if kind == "yxanul":
            pipe.send(trainer_speed(model, optimizers, length, stream, settings))
        else:
            rows = padded(text.corpus, length) if kind == "plain" else packed(vocab_size, length)
            pipe.send(loop_speed(model, optimizers, rows))


KINDS = {"plain": Plain, "by hand": ByHand, "yxanul": Transformer}


def start(kind: str, overrides: list[str]) -> Connection:
    """A process that measures one kind."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=serve, args=(kind, overrides, theirs), daemon=True).start()
    return ours


def main() -> None:
    overrides, console = sys.argv[1:], Console()
    read_text(compose_run(overrides), console)  # prepared once, for all
    pipes = {kind: start(kind, overrides) for kind in KINDS}
    table = Table("length", *KINDS, "yxanul / plain", "yxanul / by hand", title="tokens/s")
    for length in LENGTHS:
        rounds = []
        for _ in range(ROUNDS):
            speeds = []
            for pipe in pipes.values():
                pipe.send(length)
                speeds.append(pipe.recv())
            rounds.append(speeds)
        medians = [f"{statistics.median(column):,.0f}" for column in zip(*rounds, strict=True)]
        ratios = [statistics.median(speeds[2] / speeds[other] for speeds in rounds) for other in (0, 1)]
        table.add_row(str(length), *medians, *(f"{ratio:.2f}" for ratio in ratios))
    for pipe in pipes.values():
        pipe.send(None)
    console.print(table)


if __name__ == "__main__":
    main()
