"""The training loop: execute the plan, measure, save, and stop when asked.

It decides nothing. Lengths, tokens, learning rates and clipping come from the plan, data from the stream by
step number, and what is seen is held against what was planned. Only when memory runs out does it cut the
micro-batches of what is left in two: the mathematics stays.

Several processes share each step: every one takes its sequences, the gradients meet in the backward of the last
micro-batch, and from then on all do the same.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from yxanul import hardware
from yxanul.config import OnSpike
from yxanul.curriculum import Step, in_micro_batches_of
from yxanul.data.stream import Stream
from yxanul.errors import UserError
from yxanul.model.attention import Attention
from yxanul.model.transformer import Transformer
from yxanul.tracking import EvalRow, EventRow, Tracker, TrainRow
from yxanul.training import checkpoint
from yxanul.training.checkpoint import Saver, TrainState
from yxanul.training.compilation import graphs_compiled
from yxanul.training.distributed import ALONE, World
from yxanul.training.evaluation import Score
from yxanul.training.guard import WINDOW, Guard, limit
from yxanul.training.parallel import Accumulating, accumulating
from yxanul.training.signals import StopRequest
from yxanul.training.step import Batch, Found, add_gradient, feed, update
from yxanul.training.watch import Watch

Taken = tuple[Step, Found, float]
"""A step, what it found, and the largest loss, in nats a token, that was no spike."""

LAG = {"cpu": 0, "cuda": 1}
"""Steps that may be under way on a device before the oldest is read: it then never waits for the host."""


@dataclass
class Trainer:
    """A model on its way through a plan.

    Attributes:
        attention_of: sequence length -> the kernel of its attention.
        flops_per_token: sequence length -> FLOPs of training on one token.
        save_every, evaluate_every: optimizer steps.
        score: evaluates the model on the held-out text, and how many bytes that is.
        peak_flops: FLOP/s that utilization is measured against; None: it would mean nothing.
        guard: against steps that go wrong.
        at: is told where training is, again and again.
        watch: of its precision, None to go without.
        world: the processes that share each step. All but the first have a tracker that shows nothing.
        warm: whether to take every shape through the model once before the clock starts, for a device or a
            compiler that takes its time at a first call; `warm_up_seconds` says how long that was.
    """

    model: Transformer
    optimizers: Sequence[torch.optim.Optimizer]
    stream: Stream
    steps: Sequence[Step]
    device: torch.device
    attention_of: Callable[[int], Attention]
    tracker: Tracker
    saver: Saver
    save_every: int
    evaluate_every: int | None
    score: Callable[[], Score]
    eval_bytes: int
    flops_per_token: Callable[[int], float]
    peak_flops: float | None
    guard: Guard
    at: Callable[[str], None] = lambda where: None
    watch: Watch | None = None
    world: World = ALONE
    warm: bool = False
    warm_up_seconds: float = 0.0
    _batches: Iterator[Batch] = field(default_factory=lambda: iter(()), init=False, repr=False)
    _graphs: int = field(default=0, init=False)
    _skipped_tokens: int = field(default=0, init=False)
    _accumulating: Accumulating = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._accumulating = accumulating(self.model, self.world)

    def train(self, state: TrainState, stop: StopRequest) -> tuple[TrainState, Score | None]:
        """Execute the steps after `state.step`, to the end or until `stop` is set; a checkpoint is saved either way.

        Returns:
            The state reached, and its evaluation if the plan's end was reached in this call.

        Raises:
            UserError: too many steps went wrong, a spike is to end the run, not enough memory for a single
                sequence, or a checkpoint cannot be written.
        """
        first = index = state.step
        self._skipped_tokens = state.skipped_tokens
        if self.warm and first < len(self.steps):
            self._warm_up(first)
        self._graphs = graphs_compiled()
        began = self._mark = time.perf_counter()
        began -= state.seconds
        self._batches = self._feed(first)
        unread: deque[Taken] = deque()
        while index < len(self.steps):
            state = self._look(index, state)
            taken = self._take(index, stop, state)
            if taken is None:
                break
            unread.append(taken)
            index += 1
            ends = index == len(self.steps)
            evaluates = not ends and self.evaluate_every and index % self.evaluate_every == 0
            saves = not ends and index % self.save_every == 0
            state = self._settle_all(unread, 0 if ends or evaluates or saves else LAG[self.device.type], state, began)
            if state.step + len(unread) < index:  # went back to a checkpoint
                index = state.step
                continue
            if evaluates:
                self.evaluate(state)
            if saves:
                self._save(state)
        state = self._settle_all(unread, 0, state, began)
        self._save(state)
        self.saver.wait()
        if first == len(self.steps) or state.step < len(self.steps):
            return state, None
        return state, self.evaluate(state)

    def _feed(self, first: int) -> Iterator[Batch]:
        moved = (replace(step, first_token=step.first_token + self._skipped_tokens) for step in self.steps[first:])
        places = ((step, index) for step in moved for index in range(len(step.micro_batches)))
        return feed(self.stream, self.attention_of, places, self.device, self.world.rank)

    def _warm_up(self, first: int) -> None:
        """A micro-batch of every shape to come, forward and backward, and an optimizer step that changes nothing."""
        start = time.perf_counter()
        shapes = {(step.seq_len, step.micro_batches): index for index, step in enumerate(self.steps) if index >= first}
        for start_of_phase in self.watch.phases(first) if self.watch else [first]:
            if self.watch:
                self.watch.begin(start_of_phase)
            for index in shapes.values():
                self.at(f"warming up for step {index + 1}")
                self._within_memory(index, lambda index=index: self._try_shape(self.steps[index]))
        self.warm_up_seconds = time.perf_counter() - start
        message = f"warmed up in {self.warm_up_seconds:.1f} s: {len(shapes)} shapes"
        self.tracker.log(EventRow(kind="event", step=first, message=message, warm_up_seconds=self.warm_up_seconds))

    def _try_shape(self, step: Step) -> None:
        counts = {count: index for index, count in enumerate(step.micro_batches)}
        for batch in feed(self.stream, self.attention_of, [(step, place) for place in counts.values()], self.device):
            add_gradient(self.model, batch, step.tokens)
        nothing = torch.full((), math.nan, device=self.device)
        update(self.model, self.optimizers, step, nothing, 0).read()
        self.model.zero_grad()

    def _look(self, index: int, state: TrainState) -> TrainState:
        """Let the watch see step `index` before it is taken, and act on it.

        All processes look at the first's sequences: so they see and do the same without a word.
        """
        if self.watch is None:
            return state
        self.watch.begin(index)
        if not self.watch.due(index):
            return state
        rows, left = self.watch.look(self.steps[index], self._try_first)
        for row in rows:
            self.tracker.log(row)
        self._mark = time.perf_counter()
        return replace(state, left_fp8=[*state.left_fp8, *left])

    def _try_first(self, step: Step) -> None:
        for batch in feed(self.stream, self.attention_of, [(step, 0)], self.device):
            add_gradient(self.model, batch, step.tokens)

    def _take(self, index: int, stop: StopRequest, state: TrainState) -> Taken | None:
        """Take the optimizer step `index` of the plan; None if asked to stop before it was taken."""
        nats, num_bytes = self._within_memory(index, lambda: self._accumulate(self.steps[index], stop))
        if nats is None:
            return None
        step = self.steps[index]
        same_stage = index > 0 and state.step > 0 and self.steps[state.step - 1].stage == step.stage
        most = limit(state.losses) if same_stage else math.inf
        spared = math.inf if self.guard.takes_spikes else most * step.tokens
        return step, update(self.model, self.optimizers, step, nats, num_bytes, spared), most

    def _accumulate(self, step: Step, stop: StopRequest) -> tuple[torch.Tensor | None, int]:
        """The gradient of the step's micro-batches, their nats and bytes; None if asked to stop in between."""
        self.model.zero_grad()
        nats = torch.zeros((), device=self.device)
        tokens = num_bytes = 0
        for index, sequences in enumerate(step.micro_batches):
            if stop.asked(self.world):
                return None, 0
            self.at(f"micro-batch {index + 1} of {len(step.micro_batches)} of step {step.index + 1}")
            if self.watch:
                self.watch.micro_batch(index)
            batch = next(self._batches)
            assert len(batch.targets) == sequences * step.seq_len
            model = self._accumulating(index == len(step.micro_batches) - 1)
            nats += add_gradient(model, batch, step.tokens / self.world.size)  # the mean over processes is taken of it
            tokens += len(batch.targets)
            num_bytes += batch.bytes
        tokens *= self.world.size
        assert tokens == step.tokens, f"step {step.index} saw {tokens} tokens and {step.tokens} were planned"
        self.world.add_up(nats)
        return nats, self.world.total(num_bytes)

    def _within_memory(self, index: int, attempt: Callable):
        """What `attempt` returns; each time that memory runs out, the micro-batches from step `index` on are halved."""
        while True:
            try:
                return attempt()
            except torch.OutOfMemoryError as error:
                # what the failed attempt held is free only when the handler is left
                if self.world.size > 1:  # the others may be waiting for this one's gradients already
                    raise UserError(self._too_large(index)) from error
            self._halve(index)

    def _too_large(self, index: int) -> str:
        step = self.steps[index]
        most = max(step.micro_batches)
        return (
            f"out of memory on process {self.world.rank} at step {index + 1} with {most} sequences of {step.seq_len} "
            f"tokens; set hardware.micro_batch.{step.seq_len}={max(1, most // 2)}"
        )

    def _halve(self, index: int) -> None:
        self.model.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        step = self.steps[index]
        largest = max(step.micro_batches) * step.seq_len
        if largest == step.seq_len:
            raise UserError(
                f"out of memory at step {index + 1} with a single sequence of {step.seq_len} tokens; "
                f"set hardware.recompute=1, lower curriculum.max_seq_len, or take a smaller model"
            )
        self.steps = [*self.steps[:index], *in_micro_batches_of(self.steps[index:], largest // 2)]
        self._batches = self._feed(index)
        self._event(
            index + 1,
            f"out of memory with {largest} tokens a micro-batch: at most {max(largest // 2, step.seq_len)} from here, "
            "with more accumulation",
        )

    def _settle_all(self, unread: deque[Taken], but: int, state: TrainState, began: float) -> TrainState:
        """Settle steps that were taken until `but` so many are left, or none where one of them led back."""
        while len(unread) > but:
            taken = unread.popleft()
            state = self._settle(*taken, state, began)
            if state.step <= taken[0].index:
                unread.clear()
        return state

    def _settle(self, step: Step, found: Found, most: float, state: TrainState, began: float) -> TrainState:
        """Wait for a step that was taken, record it, and count it; one that was skipped has moved the data on."""
        nats, grad_norm = found.read()
        loss = nats / step.tokens
        finite = math.isfinite(nats) and math.isfinite(grad_norm)
        spiked = finite and loss > most
        bad = not finite or (spiked and not self.guard.takes_spikes)
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        state = replace(
            state,
            step=step.index + 1,
            tokens=state.tokens + step.tokens,
            bytes=state.bytes + found.bytes,
            seconds=now - began,
            bad_steps=state.bad_steps + bad,
            bad_in_a_row=state.bad_in_a_row + 1 if bad else 0,
            losses=self._losses(step, state.losses, None if bad else loss),
        )
        self._log(step, found, nats, grad_norm, state, seconds)
        if not finite:
            self._event(state.step, "loss or gradient not finite, step skipped")
        elif spiked:
            state = self._after_spike(step, loss, most, state)
        if graphs_compiled() > self._graphs:
            self._graphs = graphs_compiled()
            self._event(state.step, "torch.compile made a new graph after the warm-up; that costs time")
        if state.bad_in_a_row >= self.guard.max_bad_steps:
            raise UserError(
                f"loss or gradient was not finite, or a spike, for {state.bad_in_a_row} steps in a row, "
                f"up to step {state.step}; lower optimizer.lr or look at the data; earlier checkpoints are intact"
            )
        return state

    def _losses(self, step: Step, before: list[float], loss: float | None) -> list[float]:
        """The last losses of the stage, with this step's unless it is to be forgotten."""
        of_stage = before if step.index > 0 and self.steps[step.index - 1].stage == step.stage else []
        return (of_stage if loss is None else [*of_stage, loss])[-WINDOW:]

    def _after_spike(self, step: Step, loss: float, most: float, state: TrainState) -> TrainState:
        """Tell a spike, and do about it what the user chose."""
        spike = f"step {state.step}: loss {loss:.3f} is a spike, at most {most:.3f} was to be expected"
        match self.guard.on_spike:
            case OnSpike.stop:
                raise UserError(f"{spike}; lower optimizer.lr or look at the data; earlier checkpoints are intact")
            case OnSpike.rollback:
                return self._roll_back(spike, step, state)
            case OnSpike.skip:
                self._event(state.step, f"{spike}; skipped")
            case OnSpike.warn:
                self._event(state.step, spike)
        return state

    def _roll_back(self, spike: str, step: Step, state: TrainState) -> TrainState:
        """Go back to the newest checkpoint, with the data after `step` in the place of what came after it."""
        self.saver.wait()
        path = self.world.from_first(lambda: next(reversed(checkpoint.checkpoints(self.saver.folder)), None))
        if path is None:
            self._event(state.step, f"{spike}; skipped, as there is no checkpoint yet")
            return state
        if state.rollbacks == self.guard.max_bad_steps:
            raise UserError(f"{spike}, after {state.rollbacks} rollbacks; lower optimizer.lr or look at the data")
        then = checkpoint.load(path, self.model, self.optimizers)
        self._skipped_tokens += step.first_token + step.tokens - self.steps[then.step].first_token
        self._batches = self._feed(then.step)
        self.tracker.go_back(then.step)
        self._event(then.step, f"{spike}; back to {path.name}, and on with other data")
        return replace(
            then,
            seconds=state.seconds,
            bad_steps=state.bad_steps,
            left_fp8=state.left_fp8,
            rollbacks=state.rollbacks + 1,
            skipped_tokens=self._skipped_tokens,
        )

    def _log(self, step: Step, found: Found, nats: float, grad_norm: float, state: TrainState, seconds: float) -> None:
        speed = step.tokens / seconds
        self.tracker.log(
            TrainRow(
                kind="train",
                step=state.step,
                stage=step.stage + 1,
                seq_len=step.seq_len,
                tokens=state.tokens,
                bytes=state.bytes,
                loss=nats / step.tokens,
                bits_per_byte=nats / math.log(2) / max(1, found.bytes),
                lr=step.lr,
                grad_norm=grad_norm,
                tokens_per_second=speed,
                bytes_per_second=found.bytes / seconds,
                mfu=speed * self.flops_per_token(step.seq_len) / self.peak_flops if self.peak_flops else None,
                memory_gb=hardware.memory_in_use(self.device),
                seconds=state.seconds,
            )
        )

    def _event(self, step: int, message: str) -> None:
        self.tracker.log(EventRow(kind="event", step=step, message=message))

    def evaluate(self, state: TrainState) -> Score:
        """Score the model on the held-out text and record it."""
        self.at(f"evaluation after step {state.step}")
        began = time.perf_counter()
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
                evaluation_seconds=time.perf_counter() - began,
            )
        )
        self._graphs = graphs_compiled()  # rows of other lengths may have needed graphs of their own
        self._mark = time.perf_counter()
        return score

    def _save(self, state: TrainState) -> None:
        if state.step > 0:
            self.at(f"checkpoint of step {state.step}")
            self.saver.save(state, self.model, self.optimizers)
        self._mark = time.perf_counter()
