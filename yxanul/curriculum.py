"""Stages -> the plan of every optimizer step: a pure function of the configuration.

Stages are shares of a token budget. A step of a stage holds the stage's tokens (the optimization is the
curriculum's), cut into as many micro-batches as the hardware needs (the capacity is the hardware's): changing
the device changes only `micro_batches`. The trainer executes these steps and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from yxanul.config import CurriculumConfig, ScheduleConfig, Stage, TrainConfig
from yxanul.optim.schedule import learning_rate


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        index: 0-based position in the run.
        stage: 0-based index into the curriculum's stages.
        seq_len: tokens of one sequence.
        micro_batches: sequences of each micro-batch of one process; their sum times the world size times
            seq_len is `tokens`.
        first_token: position in the run's token stream where this step begins.
        tokens: tokens that the step trains on, over all processes.
        lr: learning rate, the stage's scale included.
        grad_clip: largest global gradient norm.
    """

    index: int
    stage: int
    seq_len: int
    micro_batches: tuple[int, ...]
    first_token: int
    tokens: int
    lr: float
    grad_clip: float


def capped_stages(curriculum: CurriculumConfig) -> list[Stage]:
    """The stages under the curriculum's caps on sequence length and step tokens; a step holds whole sequences."""
    stages = []
    for stage in curriculum.stages:
        seq_len = min(stage.seq_len, curriculum.max_seq_len or stage.seq_len)
        tokens = min(stage.step_tokens, curriculum.max_step_tokens or stage.step_tokens)
        stages.append(replace(stage, seq_len=seq_len, step_tokens=tokens // seq_len * seq_len))
    return stages


def steps_per_stage(stages: Sequence[Stage], train: TrainConfig) -> list[int]:
    """How many steps each stage gets of the budget; a stage whose share is less than half a step may get none.

    With `train.steps` the budget is the number of tokens that so many steps hold, and the total is exact.
    Rounding is cumulative, so no stage is more than a step from its share.
    """
    per_token = [stage.share / stage.step_tokens for stage in stages]
    budget = train.tokens if train.steps is None else train.steps / sum(per_token)
    counts, planned, done = [], 0.0, 0
    for weight in per_token:
        planned += weight * budget
        counts.append(round(planned + 1e-9) - done)
        done += counts[-1]
    return counts


def plan(
    curriculum: CurriculumConfig,
    train: TrainConfig,
    schedule: ScheduleConfig,
    peak_lr: float,
    micro_batch: Callable[[int], int],
    world_size: int = 1,
) -> list[Step]:
    """Every optimizer step of the run, in order.

    Args:
        peak_lr: the learning rate that schedule and stage scale multiply.
        micro_batch: sequence length -> how many such sequences one device takes at once.
        world_size: processes that share each step's sequences.

    Raises:
        ValueError: a stage's sequences cannot be shared out evenly, or no step at all fits the budget.
    """
    stages = capped_stages(curriculum)
    counts = steps_per_stage(stages, train)
    total = sum(count * stage.step_tokens for count, stage in zip(counts, stages, strict=True))
    if total == 0:
        smallest = min(stage.step_tokens for stage in stages)
        raise ValueError(
            f"train.tokens={train.tokens}: is less than one optimizer step of {smallest} tokens; "
            "raise it or lower curriculum.max_step_tokens"
        )
    steps: list[Step] = []
    first_token = 0
    for number, (stage, count) in enumerate(zip(stages, counts, strict=True)):
        size = stage.step_tokens
        if count == 0:
            continue
        if size % (stage.seq_len * world_size):
            raise ValueError(_cannot_share(curriculum, number, stage, world_size))
        shares = split_evenly(size // stage.seq_len, micro_batch(stage.seq_len), world_size)
        for _ in range(count):
            lr = peak_lr * stage.lr_scale * learning_rate(schedule, first_token + size / 2, total)
            steps.append(
                Step(
                    len(steps),
                    number,
                    stage.seq_len,
                    shares,
                    first_token,
                    size,
                    lr,
                    stage.grad_clip,
                )
            )
            first_token += size
    return steps


def _cannot_share(curriculum: CurriculumConfig, number: int, stage: Stage, world_size: int) -> str:
    """Why a stage's step cannot be shared, with the key that decides on its tokens and the nearest that would do."""
    cap, unit = curriculum.max_step_tokens, stage.seq_len * world_size
    capped = cap is not None and cap < curriculum.stages[number].step_tokens
    key = "curriculum.max_step_tokens" if capped else f"curriculum.stages.{number}.step_tokens"
    sequences, below = stage.step_tokens // stage.seq_len, stage.step_tokens // unit * unit
    nearest = " or ".join(str(tokens) for tokens in (below, below + unit) if tokens)
    return (
        f"{key}={stage.step_tokens}: a step of stage {number + 1} has {sequences} sequences of "
        f"{stage.seq_len} tokens, which {world_size} processes cannot share evenly; {nearest} would do"
    )


def split_evenly(sequences: int, at_most: int, world_size: int = 1) -> tuple[int, ...]:
    """Cut one process's share of `sequences` into the fewest micro-batches of at most `at_most`, sizes within one.

    Raises:
        ValueError: `sequences` is not a multiple of `world_size`.
    """
    if sequences % world_size:
        raise ValueError(
            f"a step of {sequences} sequences cannot be shared by {world_size} processes; make it a multiple"
        )
    mine = sequences // world_size
    pieces = -(-mine // at_most)
    return tuple(mine // pieces + (piece < mine % pieces) for piece in range(pieces))


def in_micro_batches_of(steps: Sequence[Step], tokens: int) -> list[Step]:
    """The same steps in micro-batches of at most so many tokens, or of one sequence where that is longer."""
    return [
        replace(
            step,
            micro_batches=split_evenly(
                sum(step.micro_batches), min(max(step.micro_batches), max(1, tokens // step.seq_len))
            ),
        )
        for step in steps
    ]


def stage_steps(steps: Sequence[Step]) -> dict[int, list[Step]]:
    """The planned steps by stage index, stages without steps left out."""
    stages: dict[int, list[Step]] = {}
    for step in steps:
        stages.setdefault(step.stage, []).append(step)
    return stages
