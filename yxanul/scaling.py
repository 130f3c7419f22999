"""How a run's time falls with the number of GPUs, and from which number on more of them do not pay."""

import math
from dataclasses import dataclass, replace

import torch

from yxanul import curriculum, hardware
from yxanul.communication import find_ring, step_sending
from yxanul.config import Config
from yxanul.planning import RunPlan, StagePlan, step_memory
from yxanul.precision.linear import Precision

PAYS = 1.5
"""Twice as many GPUs pay if they are at least so many times as fast."""


@dataclass(frozen=True)
class Size:
    """A number of GPUs, the predicted seconds of the run on them, and those of these in which they wait."""

    gpus: int
    seconds: float
    communication_seconds: float

    @property
    def communication(self) -> float:
        """Share of the time in which the processes wait for what they send one another."""
        return self.communication_seconds / self.seconds

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600


@dataclass(frozen=True)
class Scaling:
    """The run on 1, 2, 4, ... GPUs, and why not on twice as many as the last."""

    sizes: list[Size]
    end: str

    @property
    def best(self) -> int:
        """Index of the last size that pays, counted from each smaller one: every doubling `PAYS` times, on average.

        So a doubling that does not pay, as the first over several nodes may not, can be made good by those after it.
        """
        worth = [PAYS**-index / size.seconds for index, size in enumerate(self.sizes)]
        return max(range(len(worth)), key=lambda index: (worth[index], index))


def plan_scaling(config: Config, device: torch.device, precision: Precision, plan: RunPlan) -> Scaling:
    """Foretell a planned run's time on other numbers of GPUs, `hardware.gpus_per_node` on a node.

    Nothing is timed again: the computing of the plan is divided anew, as if GPUs reached the same utilization in
    smaller micro-batches. Each has as many sequences at once as fit it, or all of its share where that is less.
    The optimizers' work, which the plan takes for nothing, does not shrink with a GPU's share of the tokens.
    """
    sizes: list[Size] = []
    while True:
        gpus = 2 ** len(sizes)
        try:
            sizes.append(_size(config, device, precision, plan, gpus))
        except ValueError as error:
            return Scaling(sizes, str(error))


def _size(config: Config, device: torch.device, precision: Precision, plan: RunPlan, gpus: int) -> Size:
    """Raises ValueError where a step cannot be shared by so many, or what lies between them is unknown."""
    ring = find_ring(replace(config.hardware, nodes=math.ceil(gpus / config.hardware.gpus_per_node)), gpus)
    fitting = hardware.micro_batches(config.hardware, device, step_memory(config, device, precision, gpus))

    def waiting(stage: StagePlan, compute: float) -> float:
        micro_batches = curriculum.split_evenly(stage.sequences, fitting(stage.seq_len), gpus)
        return stage.steps * step_sending(config, ring, micro_batches, compute / stage.steps).exposed

    computes = [stage.compute_seconds * plan.processes / gpus for stage in plan.stages]
    waits = [waiting(stage, compute) for stage, compute in zip(plan.stages, computes, strict=True)]
    return Size(gpus, sum(computes) + sum(waits), sum(waits))
