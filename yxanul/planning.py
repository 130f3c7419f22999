"""The plan of a run, before a cent is spent: every step, and what each stage costs.

Made from the configuration and the device alone; the training command makes the same one and executes it.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from yxanul import curriculum, hardware
from yxanul.communication import Ring, find_ring, step_sending
from yxanul.composition import to_plain
from yxanul.config import Backend, Config, Dtype, HardwareConfig, Parallel
from yxanul.errors import ConfigError, UserError
from yxanul.kernels import Kernels, choose_kernels, compiles
from yxanul.model import count
from yxanul.model.attention import tile_tokens
from yxanul.model.memory import training_bytes
from yxanul.precision.linear import Precision
from yxanul.precision.plan import PlannedProduct, plan_products, time_left
from yxanul.precision.support import Choice
from yxanul.precision.timing import timer


@dataclass(frozen=True)
class StagePlan:
    """One stage in figures; memory and seconds are predictions."""

    stage: int  # 1-based
    seq_len: int
    steps: int
    sequences: int  # of one step
    micro_batches: int  # of one step
    step_tokens: int
    tokens: int  # of the whole stage
    bytes: int  # of text, by the tokenizer's usual bytes per token
    attention: str  # kernel
    peak_lr: float  # the largest of its steps
    grad_clip: float
    memory_bytes: int
    flops: float
    communication_seconds: float  # of `seconds`, in which the processes wait for what they send one another
    seconds: float

    @property
    def compute_seconds(self) -> float:
        return self.seconds - self.communication_seconds


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        steps: every optimizer step.
        stages: those that get steps; `skipped` names (1-based) those too short to get one.
        parameters: of the model, and of them in the layers.
        kernels: what computes attention, head and loss, and whether compiled.
        products: every matrix product of a training step and what it runs in.
        fp8: what makes products in FP8, None if nothing does.
        fp8_lost: why FP8 that was asked for does not run; None if it does or was not asked for.
        device: in words, with their number where several processes share the steps.
        processes: that share the steps.
        uncounted: why the times are without communication; None if they are with it.
        memory_limit: bytes of one device.
        peak_flops: FLOP/s that utilization is measured against, of all devices together.
    """

    steps: list[curriculum.Step]
    stages: list[StagePlan]
    skipped: list[int]
    parameters: int
    layer_parameters: int
    computes: str
    kernels: Kernels
    products: list[PlannedProduct]
    fp8: Choice | None
    fp8_lost: str | None
    device: str
    processes: int
    uncounted: str | None
    memory_limit: int
    peak_flops: float

    @property
    def emulated(self) -> bool:
        """Whether FP8 is emulated: its numerics without its speed."""
        return self.fp8 is not None and self.fp8.backend is Backend.emulated

    @property
    def communication(self) -> float:
        """The share of the time in which the processes wait for what they send one another."""
        return sum(s.communication_seconds for s in self.stages) / sum(s.seconds for s in self.stages)

    def record(self) -> dict:
        """The plan as plan.json holds it: figures by stage, and a fingerprint of all the steps."""
        plain = to_plain(self)
        plain["fingerprint"] = hashlib.sha256(repr(self.steps).encode()).hexdigest()
        plain["steps"] = len(self.steps)
        plain["tokens"] = sum(step.tokens for step in self.steps)
        return plain


def make_plan(config: Config, device: torch.device, precision: Precision, world_size: int = 1) -> RunPlan:
    """Plan the run of a validated configuration.

    Args:
        world_size: processes, each with such a device, that share every step.

    Raises:
        UserError: the budget holds no step, a kernel that is named cannot run here, or not even one sequence fits into
            the device's memory.
    """
    vocab = config.tokenizer.vocab_size
    compiled = _compiles(config, device, precision)
    memory = step_memory(config, device, precision, world_size)
    micro_batch = hardware.micro_batches(config.hardware, device, memory)
    try:
        steps = curriculum.plan(
            config.curriculum, config.train, config.schedule, config.optimizer.lr, micro_batch, world_size
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    rows, tokens = _by_length(steps)
    kernels = choose_kernels(config, device, precision.dtype, rows, compiled)
    timed = timer(config.precision, precision, device, compiled)
    products = plan_products(config.precision, precision, config.model, vocab, rows, tokens, timed)
    peak = world_size * hardware.peak_flops(config.hardware, device, precision.dtype)
    speed = peak * config.hardware.utilization / time_left(products)
    ring, uncounted = _ring(config.hardware, world_size)
    stages = [
        _plan_stage(config, number, of_stage, kernels, memory, speed, ring)
        for number, of_stage in curriculum.stage_steps(steps).items()
    ]
    limit = hardware.memory_bytes(config.hardware, device)
    _refuse_too_large(stages, memory, limit)
    return RunPlan(
        steps=steps,
        stages=stages,
        skipped=[
            number for number in range(1, len(config.curriculum.stages) + 1) if number not in {s.stage for s in stages}
        ],
        parameters=count.parameters(config.model, vocab),
        layer_parameters=count.layer_parameters(config.model),
        computes=precision.computes,
        kernels=kernels,
        products=products,
        fp8=precision.fp8,
        fp8_lost=precision.lost,
        device=f"{world_size} x {hardware.describe(device)}" if world_size > 1 else hardware.describe(device),
        processes=world_size,
        uncounted=uncounted,
        memory_limit=limit,
        peak_flops=peak,
    )


def _refuse_too_large(stages: Sequence[StagePlan], memory: Callable[[int, int], int], limit: int) -> None:
    """Refuse a length of which not even one sequence fits; predictions are held to a tenth."""
    for stage in stages:
        needed = memory(stage.seq_len, tile_tokens(stage.seq_len) if stage.attention == "bmm" else 0)
        if needed > 1.1 * limit:
            raise UserError(
                f"one sequence of {stage.seq_len} tokens takes about {needed / 2**30:.3g} GiB, and the device has "
                f"{limit / 2**30:.3g}; set hardware.recompute=1, lower curriculum.max_seq_len, or take a smaller model"
            )


def step_memory(
    config: Config, device: torch.device, precision: Precision, world_size: int
) -> Callable[[int, int], int]:
    """A function from the tokens of a micro-batch, and of a tile of attention or 0, to a process's predicted bytes."""
    dtype = Dtype.bf16 if precision.dtype is torch.bfloat16 else Dtype.fp32
    compiled = _compiles(config, device, precision)
    shards = world_size if config.hardware.parallel is Parallel.fsdp else 1
    parameters = count.parameters(config.model, config.tokenizer.vocab_size)
    buckets = 4 * parameters if world_size > shards else 0  # of gradients on their way, with ddp

    def memory(tokens: int, tile: int = 0) -> int:
        return training_bytes(config, dtype, device.type, compiled, tokens, tile, shards) + buckets

    return memory


def _ring(config: HardwareConfig, world_size: int) -> tuple[Ring, str | None]:
    """The ring of the processes, and why it is taken for infinitely fast where its speed is not known."""
    try:
        return find_ring(config, world_size), None
    except ValueError as error:
        return Ring(world_size, math.inf), str(error)


def _by_length(steps: Sequence[curriculum.Step]) -> tuple[dict[int, int], dict[int, int]]:
    """By sequence length: tokens of the largest micro-batch, and of all steps."""
    rows: dict[int, int] = {}
    tokens: dict[int, int] = {}
    for step in steps:
        rows[step.seq_len] = max(rows.get(step.seq_len, 0), max(step.micro_batches) * step.seq_len)
        tokens[step.seq_len] = tokens.get(step.seq_len, 0) + step.tokens
    return rows, tokens


def _plan_stage(
    config: Config,
    number: int,
    steps: Sequence[curriculum.Step],
    kernels: Kernels,
    memory: Callable[[int, int], int],
    speed: float,
    ring: Ring,
) -> StagePlan:
    """A stage (0-based) in figures.

    Args:
        memory: tokens of a micro-batch and of a tile of attention -> predicted bytes.
        speed: FLOP/s that are expected of all processes together.
        ring: over which they send one another weights and gradients.
    """
    first, tokens = steps[0], sum(step.tokens for step in steps)
    attention = kernels.attention[first.seq_len]
    tile = tile_tokens(first.seq_len) if attention == "bmm" else 0
    flops = tokens * count.training_flops_per_token(config.model, config.tokenizer.vocab_size, first.seq_len)
    compute = flops / speed
    waiting = len(steps) * step_sending(config, ring, first.micro_batches, compute / len(steps)).exposed
    return StagePlan(
        stage=number + 1,
        seq_len=first.seq_len,
        steps=len(steps),
        sequences=first.tokens // first.seq_len,
        micro_batches=len(first.micro_batches),
        step_tokens=first.tokens,
        tokens=tokens,
        bytes=round(tokens * config.tokenizer.bytes_per_token),
        attention=attention,
        peak_lr=max(step.lr for step in steps),
        grad_clip=first.grad_clip,
        memory_bytes=memory(max(first.micro_batches) * first.seq_len, tile),
        flops=flops,
        communication_seconds=waiting,
        seconds=compute + waiting,
    )


def _compiles(config: Config, device: torch.device, precision: Precision) -> bool:
    """Whether the layers are compiled; Transformer Engine's do not fit into a graph of torch.compile."""
    if precision.fp8 is None or precision.fp8.backend is not Backend.te:
        return compiles(config.hardware, device)
    if config.hardware.compile is True:
        raise ConfigError("hardware.compile", True, "precision.backend=te cannot be compiled; take scaled_mm")
    return False
