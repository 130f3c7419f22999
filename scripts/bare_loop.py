"""How much of a bare PyTorch loop's speed the trainer keeps: `python scripts/bare_loop.py [overrides]`.

Trains the quickstart's model twice on batches of one size, in turns, so that a noisy machine is noisy for
both: through Yxanul's trainer (stream, packed rows, chunked loss, metrics) and as the loop that one writes by
hand, with the same layers on (batch, length) tensors, full logits and F.cross_entropy. Prints tokens/s of
each at several sequence lengths, and the ratio.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from yxanul import cli, config, curriculum
from yxanul.data.stream import Stream
from yxanul.model.transformer import Transformer, rotate
from yxanul.optim.build import build_optimizers
from yxanul.precision.linear import build_precision
from yxanul.tracking import Record, Tracker, read_rows
from yxanul.training.checkpoint import TrainState
from yxanul.training.evaluation import Score
from yxanul.training.loop import Trainer
from yxanul.training.run import read_text
from yxanul.training.signals import StopRequest

LENGTHS = (8, 64, 128, 512)
TOKENS, STEPS, ROUNDS = 2048, 6, 5


class BareModel(Transformer):
    """The same weights, run as one would by hand: (batch, length) tensors, dense attention, all logits."""

    def forward(self, tokens, targets):
        batch, length = tokens.shape
        x = self.embedding(tokens)
        rotation = self.cos[:length], self.sin[:length]
        for block in self.blocks:
            x = x + self.attend(block.attention, block.attention_norm(x), rotation, batch, length)
            x = x + block.feed_forward(block.feed_forward_norm(x))
        hidden, weight = self.embedding.head(self.norm(x))
        return F.cross_entropy((hidden @ weight.T).float().flatten(0, 1), targets.flatten())

    @staticmethod
    def attend(layer, x, rotation, batch, length):
        q, k, v = layer.qkv(x).view(batch, length, -1, layer.head_dim).split(layer.heads, dim=2)
        if layer.qk_norm_eps is not None:
            q, k = (F.rms_norm(part, (layer.head_dim,), eps=layer.qk_norm_eps) for part in (q, k))
        q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=layer.heads[0] != layer.heads[1])
        return layer.out(out.transpose(1, 2).flatten(2))


def build(kind, settings):
    precision = build_precision(settings.precision, torch.device("cpu"))
    model = kind(settings.model, settings.tokenizer.vocab_size, precision.linear, precision.dtype)
    model.initialize(settings.model.init_std, torch.Generator().manual_seed(0))
    return model, build_optimizers(model, settings.optimizer)


def bare_speed(model, optimizers, length, vocab):
    """Median tokens/s of STEPS steps by hand."""
    speeds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        tokens = torch.randint(vocab, (TOKENS // length, length))
        model.zero_grad()
        loss = model(tokens, tokens.roll(-1, 1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        loss.item()
        speeds.append(TOKENS / (time.perf_counter() - start))
    return statistics.median(speeds)


def trainer_speed(model, optimizers, length, stream, settings):
    """Median tokens/s of STEPS steps of the trainer, from its own record."""
    stage = config.Stage(length, TOKENS, 1.0, 1.0, 1.0)
    plan = curriculum.plan(
        config.CurriculumConfig((stage,), None, None),
        replace(settings.train, steps=STEPS),
        settings.schedule,
        1e-4,
        lambda seq_len: TOKENS // seq_len,
    )
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "metrics.jsonl"
        Trainer(
            model=model,
            optimizers=optimizers,
            stream=stream,
            steps=plan,
            device=torch.device("cpu"),
            tracker=Tracker(Record(record), []),
            checkpoint_folder=Path(folder),
            checkpoint=settings.checkpoint,
            evaluate_every=None,
            score=lambda: Score(0.0, 1.0),
            eval_bytes=0,
            flops_per_token=lambda seq_len: 0.0,
            peak_flops=1.0,
            max_bad_steps=1,
        ).train(TrainState(), StopRequest())
        return statistics.median(row["tokens_per_second"] for row in read_rows(record) if row["kind"] == "train")


def main():
    config.register()
    with initialize_config_dir(str(cli.config_dir()), version_base="1.3"):
        settings = config.parse(compose("train", ["experiment=quickstart", *sys.argv[1:]]))
    console = Console()
    text = read_text(settings, console)
    stream = Stream(text.corpus, settings.seed, text.tokenizer.byte_lengths)
    bare, ours = build(BareModel, settings), build(Transformer, settings)
    table = Table("length", "bare tokens/s", "trainer tokens/s", "trainer / bare")
    for length in LENGTHS:
        pairs = [
            (bare_speed(*bare, length, text.tokenizer.vocab_size), trainer_speed(*ours, length, stream, settings))
            for _ in range(ROUNDS)
        ]
        by_hand, trained = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(second / first for first, second in pairs)
        table.add_row(str(length), f"{by_hand:,.0f}", f"{trained:,.0f}", f"{ratio:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
