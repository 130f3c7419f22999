"""The plan of every step: an arithmetic of tokens that no device changes."""

import math
from collections import Counter
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from yxanul.config import CurriculumConfig, OnSpike, ScheduleConfig, ScheduleKind, Stage, TrainConfig
from yxanul.curriculum import capped_stages, in_micro_batches_of, plan, split_evenly, stage_steps

COSINE = ScheduleConfig(ScheduleKind.cosine, warmup=0.1, decay=0.2, floor=0.1)

ULTRA = """
 1 |    8 | 4096 |  32768 |  0.35% | 0.30 | 0.5
 2 |   16 | 4096 |  65536 |  1.0%  | 0.40 | 0.5
 3 |   32 | 2048 |  65536 |  1.7%  | 0.50 | 0.7
 4 |   64 | 1024 |  65536 |  3.5%  | 0.60 | 0.8
 5 |  128 |  512 |  65536 |  5.2%  | 0.75 | 0.9
 6 |  256 |  256 |  65536 |  6.9%  | 0.85 | 1.0
 7 |  512 |  128 |  65536 |  8.7%  | 0.95 | 1.0
 8 |  768 |  128 |  98304 | 15.6%  | 1.0  | 1.0
 9 | 1536 |   64 |  98304 | 15.6%  | 1.0  | 1.0
10 | 2048 |   64 | 131072 | 41.45% | 1.0  | 1.0
"""
"""The reference's table in DESIGN 5; its shares add up to 100.05%, which the last one gives way to."""


@st.composite
def curricula(draw, caps: bool = True) -> CurriculumConfig:
    weights = draw(st.lists(st.integers(1, 50), min_size=1, max_size=6))
    stages = []
    for weight in weights:
        seq_len = draw(st.integers(1, 48))
        sequences = 4 * draw(st.integers(1, 12))  # so that 1, 2 and 4 processes can share them
        stages.append(
            Stage(
                seq_len=seq_len,
                step_tokens=seq_len * sequences,
                share=weight / sum(weights),
                lr_scale=draw(st.sampled_from([0.3, 0.85, 1.0])),
                grad_clip=draw(st.sampled_from([0.5, 1.0])),
            )
        )
    longest = max(stage.seq_len for stage in stages)
    max_step_tokens = draw(st.none() | st.integers(longest, 4 * longest)) if caps else None
    max_seq_len = draw(st.none() | st.integers(1, longest)) if caps else None
    return CurriculumConfig(tuple(stages), max_step_tokens, max_seq_len)


def trains(steps=None) -> st.SearchStrategy[TrainConfig]:
    return st.builds(
        TrainConfig,
        tokens=st.integers(3_000, 15_000),
        steps=st.none() if steps is None else steps,
        max_bad_steps=st.just(1),
        on_spike=st.just(OnSpike.warn),
    )


schedules = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(ScheduleKind),
    warmup=st.sampled_from([0.0, 0.01, 0.3]),
    decay=st.sampled_from([0.0, 0.2, 0.7]),
    floor=st.sampled_from([0.0, 0.1, 1.0]),
)


def capacity(tokens: int):
    return lambda seq_len: max(1, tokens // seq_len)


def without_micro_batches(steps):
    return [replace(step, micro_batches=()) for step in steps]


@given(curricula(), trains(), st.integers(1, 500))
def test_the_steps_tile_the_stream_of_tokens(curriculum, train, device_tokens):
    steps = plan(curriculum, train, COSINE, 1e-3, capacity(device_tokens))
    assert [step.index for step in steps] == list(range(len(steps)))
    assert [step.first_token for step in steps] == [0, *accumulate(step.tokens for step in steps)][:-1]
    assert all(sum(step.micro_batches) * step.seq_len == step.tokens > 0 for step in steps)
    assert [step.stage for step in steps] == sorted(step.stage for step in steps)


@given(curricula(), trains())
def test_every_step_is_its_stages(curriculum, train):
    stages = capped_stages(curriculum)
    for step in plan(curriculum, train, COSINE, 1e-3, capacity(64)):
        stage = stages[step.stage]
        assert (step.seq_len, step.tokens, step.grad_clip) == (stage.seq_len, stage.step_tokens, stage.grad_clip)


@given(curricula(caps=False), trains(), st.integers(1, 500), st.integers(1, 500))
def test_the_device_changes_nothing_but_the_micro_batches(curriculum, train, one, other):
    first, second = (plan(curriculum, train, COSINE, 1e-3, capacity(tokens)) for tokens in (one, other))
    assert without_micro_batches(first) == without_micro_batches(second)
    assert all(max(step.micro_batches) <= capacity(one)(step.seq_len) for step in first)


@given(curricula(caps=False), trains(), st.sampled_from([2, 4]))
def test_more_processes_share_the_same_steps(curriculum, train, world_size):
    alone = plan(curriculum, train, COSINE, 1e-3, capacity(64))
    shared = plan(curriculum, train, COSINE, 1e-3, capacity(64), world_size)
    assert without_micro_batches(alone) == without_micro_batches(shared)
    assert all(sum(step.micro_batches) * world_size * step.seq_len == step.tokens for step in shared)


@given(curricula(), trains())
def test_every_stage_gets_its_share_to_a_step(curriculum, train):
    counts = Counter(step.stage for step in plan(curriculum, train, COSINE, 1e-3, capacity(64)))
    ideals = [stage.share * train.tokens / stage.step_tokens for stage in capped_stages(curriculum)]
    for index, ideal in enumerate(ideals):
        assert abs(counts[index] - ideal) <= 1 + 1e-6
    assert abs(counts.total() - sum(ideals)) <= 0.5 + 1e-6, "errors do not add up"


@given(curricula(), trains(steps=st.integers(1, 800)))
def test_a_number_of_steps_is_kept_exactly(curriculum, train):
    steps = plan(curriculum, train, COSINE, 1e-3, capacity(64))
    assert len(steps) == train.steps
    counts = Counter(step.stage for step in steps)
    stages = capped_stages(curriculum)
    budget = train.steps / sum(stage.share / stage.step_tokens for stage in stages)
    for index, stage in enumerate(stages):
        assert abs(counts[index] * stage.step_tokens - stage.share * budget) <= stage.step_tokens * (1 + 1e-6)


@given(trains(steps=st.integers(1, 50)), st.integers(1, 10**9))
def test_with_a_number_of_steps_the_tokens_do_not_matter(train, tokens):
    curriculum = CurriculumConfig((Stage(8, 64, 0.5, 1, 1), Stage(16, 64, 0.5, 1, 1)), None, None)
    steps = plan(curriculum, train, COSINE, 1e-3, capacity(64))
    assert steps == plan(curriculum, replace(train, tokens=tokens), COSINE, 1e-3, capacity(64))


def expected_lr(schedule: ScheduleConfig, progress: float) -> float:
    """The schedules as DESIGN and their papers put them, by interpolation between their corners."""

    def line(x, x0, y0, x1, y1):
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    if progress < schedule.warmup:
        return line(progress, 0, 0, schedule.warmup, 1)
    if schedule.kind is ScheduleKind.linear:
        return line(progress, schedule.warmup, 1, 1, schedule.floor)
    if schedule.kind is ScheduleKind.wsd:
        return 1.0 if progress <= 1 - schedule.decay else line(progress, 1 - schedule.decay, 1, 1, schedule.floor)
    angle = line(progress, schedule.warmup, 0, 1, math.pi)
    return (1 + schedule.floor) / 2 + (1 - schedule.floor) / 2 * math.cos(angle)


@given(curricula(), trains(), schedules, st.floats(1e-6, 1))
def test_the_learning_rate_is_peak_times_stage_times_schedule(curriculum, train, schedule, peak):
    steps = plan(curriculum, train, schedule, peak, capacity(64))
    total = steps[-1].first_token + steps[-1].tokens
    for step in steps:
        middle = (step.first_token + step.tokens / 2) / total
        scale = curriculum.stages[step.stage].lr_scale
        assert step.lr == pytest.approx(peak * scale * expected_lr(schedule, middle), rel=1e-9, abs=1e-15)
        assert 0 < step.lr <= peak * scale * (1 + 1e-9)


@given(curricula())
def test_caps_are_respected_and_otherwise_nothing_changes(curriculum):
    stages = capped_stages(curriculum)
    assert len(stages) == len(curriculum.stages)
    for stage, written in zip(stages, curriculum.stages, strict=True):
        assert stage.seq_len == min(written.seq_len, curriculum.max_seq_len or written.seq_len)
        allowed = min(written.step_tokens, curriculum.max_step_tokens or written.step_tokens)
        assert allowed - stage.seq_len < stage.step_tokens <= allowed, "as many whole sequences as fit"
        assert stage.step_tokens % stage.seq_len == 0
        assert replace(stage, seq_len=written.seq_len, step_tokens=written.step_tokens) == written


@given(st.integers(1, 5_000), st.integers(1, 600), st.integers(1, 8))
def test_split_evenly_is_the_fewest_and_the_most_even(mine, at_most, world_size):
    pieces = split_evenly(mine * world_size, at_most, world_size)
    assert sum(pieces) == mine
    assert max(pieces) <= at_most and max(pieces) - min(pieces) <= 1
    assert (len(pieces) - 1) * at_most < mine, "one piece fewer would not hold them"


@given(st.integers(1, 500), st.integers(2, 8))
def test_what_cannot_be_shared_is_refused(sequences, world_size):
    assume(sequences % world_size)
    with pytest.raises(ValueError, match=f"{sequences} sequences .* {world_size} processes"):
        split_evenly(sequences, 4, world_size)


def test_a_budget_below_a_step_is_refused():
    curriculum = CurriculumConfig((Stage(8, 64, 0.5, 1, 1), Stage(16, 128, 0.5, 1, 1)), None, None)
    with pytest.raises(ValueError, match=r"train\.tokens=20: .* one optimizer step of 64 tokens"):
        plan(curriculum, TrainConfig(20, None, 1, OnSpike.warn), COSINE, 1e-3, capacity(64))


def test_stages_too_short_for_a_step_are_left_out():
    shares = {"long": 0.9, "short": 0.1}
    curriculum = CurriculumConfig(tuple(Stage(8, 64, share, 1, 1) for share in shares.values()), None, None)
    steps = plan(curriculum, TrainConfig(256, None, 1, OnSpike.warn), COSINE, 1e-3, capacity(64))
    assert stage_steps(steps) == {0: steps} and len(steps) == 4


@given(curricula(), trains())
def test_stage_steps_groups_all_steps_in_order(curriculum, train):
    steps = plan(curriculum, train, COSINE, 1e-3, capacity(64))
    groups = stage_steps(steps)
    assert [step for group in groups.values() for step in group] == steps
    assert all(step.stage == index for index, group in groups.items() for step in group)


def test_ultra_is_the_references_table(compose):
    """Ten stages, 8 to 2048, at the full budget of one epoch in the proportion of the published table."""
    config = compose("curriculum=ultra", "model=yxanul_197m")
    steps = plan(config.curriculum, config.train, config.schedule, 6e-4, capacity(65536))
    total = sum(step.tokens for step in steps)
    assert total == pytest.approx(config.train.tokens, abs=131072)
    assert config.train.tokens == 2_610_000_000
    groups = stage_steps(steps)
    rows = [row.split("|") for row in ULTRA.strip().splitlines()]
    assert len(groups) == len(rows) == 10
    for number, seq_len, sequences, tokens, share, lr_scale, clip in rows:
        group = groups[int(number) - 1]
        stage = config.curriculum.stages[int(number) - 1]
        assert {step.seq_len for step in group} == {int(seq_len)}
        assert {sum(step.micro_batches) for step in group} == {int(sequences)}
        assert {step.tokens for step in group} == {int(tokens)}
        assert {step.grad_clip for step in group} == {float(clip)}
        assert stage.lr_scale == float(lr_scale)
        planned = float(share.strip().rstrip("%")) / 100 * config.train.tokens
        assert abs(sum(step.tokens for step in group) - planned) <= int(tokens)


@given(curricula(), st.integers(1, 64), st.integers(1, 4096))
def test_smaller_micro_batches_change_nothing_else(curriculum, at_once, tokens):
    """Every step keeps its sequences; none is larger than asked, but for a single sequence, nor than it was."""
    before = plan(
        curriculum,
        TrainConfig(tokens=20_000, steps=30, max_bad_steps=1, on_spike=OnSpike.warn),
        COSINE,
        1.0,
        lambda _: at_once,
    )
    after = in_micro_batches_of(before, tokens)
    for old, new in zip(before, after, strict=True):
        assert replace(new, micro_batches=old.micro_batches) == old
        assert sum(new.micro_batches) == sum(old.micro_batches)
        assert max(new.micro_batches) <= max(old.micro_batches)
        assert max(new.micro_batches) * new.seq_len <= max(tokens, new.seq_len)
