"""Learning-rate schedules over the run's tokens.

Progress is counted in tokens, not steps: the stages of a curriculum hold different numbers of tokens a step,
and a schedule in steps would spend most of its decay on the short sequences.
"""

import math

from yxanul.config import ScheduleConfig, ScheduleKind


def learning_rate(schedule: ScheduleConfig, position: float, total_tokens: int) -> float:
    """The share (0..1) of the peak learning rate at token `position` of `total_tokens`; a step is taken at its middle.

    cosine: half a cosine from 1 to `floor` after the warm-up; linear: a line; wsd (warm-up, stable, decay,
    arXiv 2404.06395): 1 until the last `decay` share of the run, then a line to `floor`.
    """
    progress = position / total_tokens
    if progress < schedule.warmup:
        return progress / schedule.warmup
    if schedule.kind is ScheduleKind.wsd:
        left = min(1.0, (1 - progress) / schedule.decay) if schedule.decay > 0 else 1.0
    else:
        left = (1 - progress) / (1 - schedule.warmup) if schedule.warmup < 1 else 1.0
    if schedule.kind is ScheduleKind.cosine:
        left = 0.5 - 0.5 * math.cos(math.pi * left)
    return schedule.floor + (1 - schedule.floor) * left
