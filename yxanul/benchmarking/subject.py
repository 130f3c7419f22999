"""A composition under measurement: its model, its plan and its real training steps, timed phase by phase."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import torch

from yxanul import curriculum, hardware
from yxanul.benchmarking.corpus import synthetic_corpus
from yxanul.benchmarking.memory import peak_bytes
from yxanul.config import Config
from yxanul.curriculum import Step
from yxanul.data.stream import Stream
from yxanul.errors import UserError
from yxanul.kernels import attention_of, attention_step, cross_entropy_of, cross_entropy_step
from yxanul.model.transformer import Transformer
from yxanul.optim.build import build_optimizers
from yxanul.planning import RunPlan, make_plan
from yxanul.precision.linear import build_precision
from yxanul.training.compilation import graphs_compiled
from yxanul.training.setup import build_model
from yxanul.training.step import Batch, add_gradient, feed, update

PHASES = ("data", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Timing:
    """Seconds of a planned step by phase, of the whole where nothing waits for their ends, and of what was done."""

    tokens: int
    phases: dict[str, float]
    whole: float
    measured: float  # the part of the step that was really done


@dataclass(frozen=True)
class Apart:
    """Seconds of a planned step that attention of all layers, and head and loss, take when run by themselves."""

    attention: float
    head_and_loss: float


class Subject:
    """A composition ready to be measured.

    Args:
        name: what it is called in the results.
        folder: where the tokens that it reads are written.

    Raises:
        UserError: its FP8 would be emulated, or it cannot run on this device.

    Attributes:
        stages: the first step of every stage.
        warm_up_seconds: of `warm_up`, compilation included.
        recompiles: graphs that torch.compile made after it.
    """

    def __init__(self, name: str, config: Config, folder: Path):
        self.name, self.config = name, config
        if config.ngram.order:
            raise UserError(f"{name}: counted n-grams need text, and here tokens are random; benchmark with ngram=none")
        self.device = hardware.select_device(config.hardware.device)
        precision = build_precision(config.precision, self.device, config.hardware.compute_capability)
        self.dtype = precision.dtype
        self.plan: RunPlan = make_plan(config, self.device, precision)
        if self.plan.emulated:
            raise UserError(
                f"{name}: FP8 would be emulated here, which says nothing about speed; benchmark it on a GPU"
            )
        self.model: Transformer = build_model(config, self.plan, precision, self.device)
        self.optimizers = build_optimizers(self.model, config.optimizer, precision.dtype)
        vocab_size = config.tokenizer.vocab_size
        self._stream = Stream(synthetic_corpus(vocab_size, folder), config.seed, np.ones(vocab_size, np.int64))
        self._attention_of = attention_of(self.plan.kernels, self.device, precision.dtype)
        self.warm_up_seconds, self.recompiles = 0.0, 0
        self._loss_seconds: dict[int, float] = {}  # by the tokens of a micro-batch
        self._feeds: dict[int, Iterator[Batch]] = {}
        self.stages = [steps[0] for steps in curriculum.stage_steps(self.plan.steps).values()]

    def warm_up(self) -> None:
        """A step of every stage, so that later ones find everything compiled and allocated."""
        start = time.perf_counter()
        for step in self.stages:
            self.timed_step(step)
        self.warm_up_seconds = time.perf_counter() - start
        self.recompiles = 0

    def timed_step(self, step: Step) -> Timing:
        """Do the step with one of its micro-batches, for the others repeat it, and time it as the plan has it."""
        graphs = graphs_compiled()
        short = _with_micro_batches(step, 1)
        phases = self._phases(short)
        micro, optimizer = sum(phases.values()) - phases["optimizer"], phases["optimizer"]
        if self.device.type == "cuda":
            start = time.perf_counter()
            nats = sum(add_gradient(self.model, batch, step.tokens) for batch in self._batches(short))
            hardware.synchronize(self.device)
            micro = time.perf_counter() - start
            update(self.model, self.optimizers, step, nats, 0)
            self.model.zero_grad()
        repeated = step.tokens / short.tokens
        scaled = {name: seconds * (1 if name == "optimizer" else repeated) for name, seconds in phases.items()}
        self.recompiles += graphs_compiled() - graphs
        return Timing(step.tokens, scaled, micro * repeated + optimizer, micro + optimizer)

    def peak_bytes(self, step: Step) -> int:
        """The most memory that tensors take during the step; a second micro-batch already finds gradients."""
        short = _with_micro_batches(step, 2)
        state = [
            tensor for optimizer in self.optimizers for held in optimizer.state.values() for tensor in held.values()
        ]
        held = [*self.model.parameters(), *self.model.buffers(), *filter(torch.is_tensor, state)]
        return peak_bytes(lambda: self._phases(short), self.device, held)

    def apart(self, step: Step) -> Apart:
        """Attention, and head and loss, by themselves at the shapes of the step."""
        batch = next(self._batches(_with_micro_batches(step, 1)))
        tokens, model = len(batch.targets), self.config.model
        attention = attention_step(batch.packed.layout, model, tokens, self.device, self.dtype)
        if tokens not in self._loss_seconds:
            rank, vocab_size = model.embedding_rank or model.hidden_size, self.config.tokenizer.vocab_size
            kernel = cross_entropy_of(self.plan.kernels, self.device)
            loss = cross_entropy_step(kernel, vocab_size, rank, tokens, self.device, self.dtype)
            self._loss_seconds[tokens] = hardware.best_seconds(loss, self.device)
        repeated = step.tokens / tokens
        return Apart(
            hardware.best_seconds(attention, self.device) * model.num_layers * repeated,
            self._loss_seconds[tokens] * repeated,
        )

    def _batches(self, step: Step) -> Iterator[Batch]:
        """The step's micro-batches, made ahead while others are trained on, as they are in a run."""
        if step.stage not in self._feeds:
            self._feeds[step.stage] = feed(self._stream, self._attention_of, repeat((step, 0)), self.device)
        return islice(self._feeds[step.stage], len(step.micro_batches))

    def _phases(self, step: Step) -> dict[str, float]:
        """Seconds of each phase, waiting for the device at the end of each."""
        seconds = dict.fromkeys(PHASES, 0.0)
        mark = time.perf_counter()

        def end(phase: str) -> None:
            nonlocal mark
            hardware.synchronize(self.device)
            now = time.perf_counter()
            seconds[phase] += now - mark
            mark = now

        self.model.zero_grad()
        nats = torch.zeros((), device=self.device)
        end("optimizer")
        for batch in self._batches(step):
            end("data")
            loss = self.model(batch.packed, batch.targets)
            end("forward")
            (loss / step.tokens).backward()
            end("backward")
            nats += loss.detach()
        update(self.model, self.optimizers, step, nats, 0).read()
        end("optimizer")
        return seconds


def _with_micro_batches(step: Step, number: int) -> Step:
    """The step with at most so many micro-batches, of the first one's size."""
    counts = step.micro_batches[:1] * min(number, len(step.micro_batches))
    return replace(step, micro_batches=counts, tokens=sum(counts) * step.seq_len)
