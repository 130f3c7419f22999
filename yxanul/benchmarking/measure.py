"""Compositions measured in turns, stage by stage, so that a noisy machine is noisy for all of them alike."""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

import yxanul
from yxanul import hardware
from yxanul.benchmarking.ceilings import Ceilings, higher, measure_ceilings
from yxanul.benchmarking.subject import PHASES, Subject, Timing
from yxanul.config import Config, Dtype


@dataclass(frozen=True)
class StageResult:
    """One stage of one composition; a step is the planned one, times are medians over the rounds."""

    stage: int  # 1-based
    seq_len: int
    step_tokens: int
    micro_batch_tokens: int
    attention: str  # kernel
    tokens_per_second: float
    bytes_per_second: float  # of text, by the tokenizer's usual bytes per token
    mfu: float  # model FLOPs of the step against the measured ceiling of its dtype
    step_seconds: float
    phases: dict[str, float]  # share of the step: data, forward, backward, optimizer
    attention_share: float  # of the step, measured apart; lies inside forward and backward
    head_and_loss_share: float  # likewise
    stage_change_seconds: float  # what the first step after another stage's took beyond the second
    peak_bytes: int  # of tensors
    predicted_bytes: int  # by the plan


@dataclass(frozen=True)
class Result:
    """One composition over its whole curriculum."""

    name: str
    parameters: int
    computes: str
    cross_entropy: str
    compiled: bool
    warm_up_seconds: float  # one step of every stage, compilation included
    compile_seconds: float  # of that, beyond the median step
    recompiles: int  # graphs made after the warm-up
    tokens_per_second: float  # over all stages as planned
    bytes_per_second: float
    mfu: float
    run_seconds: float  # of the planned run, evaluation and checkpoints apart
    ratio: float | None  # of the run's tokens/s to the first composition's, median of the rounds' ratios
    stage_ratios: list[float | None] | None  # likewise, where the first composition's stage has the same length
    stages: list[StageResult]


@dataclass(frozen=True)
class Benchmark:
    """All that was measured, and on what."""

    command: str
    date: str
    device: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    rounds: int
    ceilings: Ceilings
    results: list[Result]


@dataclass(frozen=True)
class Measured:
    """A composition and the pairs of steps that were timed: by stage, then by round.

    Of two steps in a row the first pays for the change from another stage, so speed is that of the second.
    """

    subject: Subject
    pairs: list[list[tuple[Timing, Timing]]]

    def speed(self, index: int, number: int) -> float:
        """Tokens/s of a stage in a round."""
        timing = self.pairs[index][number][1]
        return timing.tokens / timing.whole

    def run_speed(self, number: int) -> float:
        """Tokens/s of the whole planned run at the speeds of a round."""
        stages = self.subject.plan.stages
        seconds = sum(stage.tokens / self.speed(index, number) for index, stage in enumerate(stages))
        return sum(stage.tokens for stage in stages) / seconds


def measure(
    compositions: Mapping[str, Config],
    rounds: int,
    folder: Path,
    command: str,
    date: str,
    report: Callable[[str], None],
) -> Benchmark:
    """Measure compositions by name, each stage of each `rounds` times in turns.

    Args:
        folder: for the tokens that are read.
        report: called with a line of what is being done.

    Raises:
        UserError: a composition cannot run on this device.
    """
    device = hardware.select_device(next(iter(compositions.values())).hardware.device)
    hardware.keep_freed_memory(device)
    report("build the models")
    subjects = [Subject(name, config, folder) for name, config in compositions.items()]
    report("ceilings of the machine")
    ceilings = measure_ceilings(device)
    found = []
    for subject in subjects:
        report(f"{subject.name}: warm up")
        subject.warm_up()
        found.append(Measured(subject, [[] for _ in subject.stages]))
    for number in range(rounds):
        report(f"round {number + 1} of {rounds}")
        for index in range(max(len(each.pairs) for each in found)):
            for each in found:
                if index < len(each.pairs):
                    step = each.subject.stages[index]
                    each.pairs[index].append((each.subject.timed_step(step), each.subject.timed_step(step)))
    ceilings = higher(ceilings, measure_ceilings(device))
    results = []
    for each in found:
        report(f"{each.subject.name}: memory; attention, head and loss apart")
        results.append(_result(each, found[0], ceilings))
    return Benchmark(
        command=command,
        date=date,
        device=hardware.describe(device),
        machine={"processor": hardware.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        versions={"yxanul": yxanul.__version__, "torch": torch.__version__, "python": platform.python_version()},
        rounds=rounds,
        ceilings=ceilings,
        results=results,
    )


def _result(measured: Measured, base: Measured, ceilings: Ceilings) -> Result:
    subject, plan = measured.subject, measured.subject.plan
    stages = [_stage_result(subject, index, pairs, ceilings) for index, pairs in enumerate(measured.pairs)]
    rounds = range(len(measured.pairs[0]))
    speed = median(measured.run_speed(number) for number in rounds)
    tokens = sum(stage.tokens for stage in plan.stages)
    steady = sum(median(second.measured for _, second in pairs) for pairs in measured.pairs)
    return Result(
        name=subject.name,
        parameters=plan.parameters,
        computes=plan.computes,
        cross_entropy=plan.kernels.cross_entropy,
        compiled=plan.kernels.compiled,
        warm_up_seconds=subject.warm_up_seconds,
        compile_seconds=max(0.0, subject.warm_up_seconds - steady) if plan.kernels.compiled else 0.0,
        recompiles=subject.recompiles,
        tokens_per_second=speed,
        bytes_per_second=speed * subject.config.tokenizer.bytes_per_token,
        mfu=sum(stage.flops for stage in plan.stages) / tokens * speed / _ceiling(subject, ceilings),
        run_seconds=tokens / speed,
        ratio=None if measured is base else median(measured.run_speed(n) / base.run_speed(n) for n in rounds),
        stage_ratios=None if measured is base else _stage_ratios(measured, base),
        stages=stages,
    )


def _stage_result(subject: Subject, index: int, pairs: list[tuple[Timing, Timing]], ceilings: Ceilings) -> StageResult:
    step, planned = subject.stages[index], subject.plan.stages[index]
    seconds = median(second.whole for _, second in pairs)
    phases = {name: median(second.phases[name] for _, second in pairs) for name in PHASES}
    apart = subject.apart(step)
    return StageResult(
        stage=planned.stage,
        seq_len=step.seq_len,
        step_tokens=step.tokens,
        micro_batch_tokens=max(step.micro_batches) * step.seq_len,
        attention=planned.attention,
        tokens_per_second=step.tokens / seconds,
        bytes_per_second=step.tokens / seconds * subject.config.tokenizer.bytes_per_token,
        mfu=planned.flops / planned.steps / seconds / _ceiling(subject, ceilings),
        step_seconds=seconds,
        phases={name: time / sum(phases.values()) for name, time in phases.items()},
        attention_share=apart.attention / seconds,
        head_and_loss_share=apart.head_and_loss / seconds,
        stage_change_seconds=median(first.measured - second.measured for first, second in pairs),
        peak_bytes=subject.peak_bytes(step),
        predicted_bytes=planned.memory_bytes,
    )


def _stage_ratios(measured: Measured, base: Measured) -> list[float | None]:
    """A stage is held against the first composition's last one of the same length."""
    theirs = {step.seq_len: index for index, step in enumerate(base.subject.stages)}
    return [
        median(measured.speed(index, n) / base.speed(theirs[step.seq_len], n) for n in range(len(pairs)))
        if step.seq_len in theirs
        else None
        for index, (step, pairs) in enumerate(zip(measured.subject.stages, measured.pairs, strict=True))
    ]


def _ceiling(subject: Subject, ceilings: Ceilings) -> float:
    return ceilings.matmul_flops[Dtype.bf16.value if subject.dtype is torch.bfloat16 else Dtype.fp32.value]
