"""The training loop: execute the plan, measure, save, and stop when asked.

It decides nothing. Lengths, tokens, learning rates and clipping come from the plan, data from the stream by
step number, and what is seen is held against what was planned.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from yxanul import hardware
from yxanul.config import CheckpointConfig
from yxanul.curriculum import Step
from yxanul.data.stream import MicroBatch, Stream, prefetch
from yxanul.errors import UserError
from yxanul.model.attention import layout
from yxanul.model.transformer import Packed, Transformer
from yxanul.tracking import EvalRow, EventRow, Tracker, TrainRow
from yxanul.training import checkpoint
from yxanul.training.checkpoint import TrainState
from yxanul.training.evaluation import Score
from yxanul.training.signals import StopRequest

PREFETCH = 4


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: summed loss in nats, gradient norm before clipping, bytes of text."""

    nats: float
    grad_norm: float
    bytes: int

    @property
    def finite(self) -> bool:
        return math.isfinite(self.nats) and math.isfinite(self.grad_norm)


@dataclass
class Trainer:
    """A model on its way through a plan.

    Attributes:
        flops_per_token: sequence length -> FLOPs of training on one token.
        score: evaluates the model on the held-out text, and how many bytes that is.
        max_bad_steps: non-finite steps in a row that end the run.
    """

    model: Transformer
    optimizers: Sequence[torch.optim.Optimizer]
    stream: Stream
    steps: Sequence[Step]
    device: torch.device
    tracker: Tracker
    checkpoint_folder: Path
    checkpoint: CheckpointConfig
    evaluate_every: int | None
    score: Callable[[], Score]
    eval_bytes: int
    flops_per_token: Callable[[int], float]
    peak_flops: float
    max_bad_steps: int

    def train(self, state: TrainState, stop: StopRequest) -> tuple[TrainState, Score | None]:
        """Execute the steps after `state.step`, to the end or until `stop` is set; a checkpoint is saved either way.

        Returns:
            The state reached, and its evaluation if the plan's end was reached in this call.

        Raises:
            UserError: too many non-finite steps in a row, or a checkpoint cannot be written.
        """
        began = time.perf_counter() - state.seconds
        remaining = self.steps[state.step :]
        batches = prefetch(
            lambda place: self.stream.micro_batch(*place),
            [(step, index) for step in remaining for index in range(len(step.micro_batches))],
            PREFETCH,
        )
        for step in remaining:
            start = time.perf_counter()
            result = self._accumulate(step, batches, stop)
            if result is None:
                break
            state = self._update(step, result, state)
            now = time.perf_counter()
            state = replace(state, seconds=now - began)
            self._log(step, result, state, now - start)
            if state.bad_in_a_row >= self.max_bad_steps:
                raise UserError(
                    f"loss or gradient was not finite for {state.bad_in_a_row} steps in a row, "
                    f"up to step {state.step}; lower optimizer.lr or look at the data; earlier checkpoints are intact"
                )
            if state.step < len(self.steps):
                if self.evaluate_every and state.step % self.evaluate_every == 0:
                    self.evaluate(state)
                if state.step % self.checkpoint.every == 0:
                    self._save(state)
        self._save(state)
        if not remaining or state.step < len(self.steps):
            return state, None
        return state, self.evaluate(state)

    def _accumulate(self, step: Step, batches, stop: StopRequest) -> StepResult | None:
        """Forward and backward over the step's micro-batches; None if asked to stop in between."""
        self.model.zero_grad()
        nats = torch.zeros((), device=self.device)
        tokens = num_bytes = 0
        for sequences in step.micro_batches:
            if stop.signal is not None:
                return None
            batch = next(batches)
            assert len(batch.tokens) == sequences * step.seq_len
            packed, targets = to_device(batch, self.device)
            loss = self.model(packed, targets)
            (loss / step.tokens).backward()
            nats += loss.detach()
            tokens += len(batch.tokens)
            num_bytes += batch.bytes
        assert tokens == step.tokens, f"step {step.index} saw {tokens} tokens and {step.tokens} were planned"
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), step.grad_clip)
        return StepResult(nats.item(), grad_norm.item(), num_bytes)

    def _update(self, step: Step, result: StepResult, state: TrainState) -> TrainState:
        """Take the optimizer step, or skip it if it is not finite; either way the data has moved on."""
        bad = not result.finite
        if not bad:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = step.lr * group["lr_scale"]
                optimizer.step()
        return replace(
            state,
            step=step.index + 1,
            tokens=state.tokens + step.tokens,
            bytes=state.bytes + result.bytes,
            bad_steps=state.bad_steps + bad,
            bad_in_a_row=state.bad_in_a_row + 1 if bad else 0,
        )

    def _log(self, step: Step, result: StepResult, state: TrainState, seconds: float) -> None:
        speed = step.tokens / seconds
        self.tracker.log(
            TrainRow(
                kind="train",
                step=state.step,
                stage=step.stage + 1,
                seq_len=step.seq_len,
                tokens=state.tokens,
                bytes=state.bytes,
                loss=result.nats / step.tokens,
                bits_per_byte=result.nats / math.log(2) / max(1, result.bytes),
                lr=step.lr,
                grad_norm=result.grad_norm,
                tokens_per_second=speed,
                bytes_per_second=result.bytes / seconds,
                mfu=speed * self.flops_per_token(step.seq_len) / self.peak_flops,
                memory_gb=hardware.memory_in_use(self.device),
                seconds=state.seconds,
            )
        )
        if not result.finite:
            self.tracker.log(
                EventRow(
                    kind="event",
                    step=state.step,
                    message="loss or gradient not finite, step skipped",
                )
            )

    def evaluate(self, state: TrainState) -> Score:
        """Score the model on the held-out text and record it."""
        score = self.score()
        self.tracker.log(
            EvalRow(
                kind="eval",
                step=state.step,
                tokens=state.tokens,
                bytes=state.bytes,
                bits_per_byte=score.bits_per_byte,
                perplexity=score.perplexity,
                eval_bytes=self.eval_bytes,
                seconds=state.seconds,
            )
        )
        return score

    def _save(self, state: TrainState) -> None:
        if state.step > 0:
            checkpoint.save(self.checkpoint_folder, state, self.model, self.optimizers, self.checkpoint.keep)


def to_device(batch: MicroBatch, device: torch.device) -> tuple[Packed, torch.Tensor]:
    """A micro-batch as the model takes it, and its targets."""
    tokens, positions, targets = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (batch.tokens, batch.positions, batch.targets)
    )
    return Packed(tokens, positions, layout(batch.segment_starts, len(batch.tokens), batch.seq_len, device)), targets
