"""The time on other numbers of GPUs: that of a plan for each, and the last number that pays, by brute force."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from yxanul import hardware, planning
from yxanul.planning import make_plan
from yxanul.precision.linear import build_precision
from yxanul.scaling import PAYS, Scaling, Size, plan_scaling

CUDA = torch.device("cuda")
RUN = ("model=yxanul_197m", "tokenizer=t80k", "curriculum=ultra", "precision=bf16", "train.tokens=50_000_000")
SLOW = ("hardware.gpu_bandwidth=5", "hardware.node_bandwidth=1")


@pytest.fixture
def scaled(compose, monkeypatch):
    """Plans a run and its scaling: `scaled("hardware=h100", "hardware.gpus_per_node=8")`, without timing anything."""

    def scale(*overrides: str):
        config = compose(*RUN, *overrides)
        precision = build_precision(config.precision, CUDA)
        plan = make_plan(config, CUDA, precision, config.hardware.nodes * config.hardware.gpus_per_node)
        for module, name in [(hardware, "best_seconds"), (planning, "timer"), (planning, "choose_kernels")]:
            monkeypatch.setattr(module, name, lambda *_: pytest.fail("timed again"))
        scaling = plan_scaling(config, CUDA, precision, plan)
        monkeypatch.undo()
        return config, precision, scaling

    return scale


def test_sizes_double(scaled):
    _, _, scaling = scaled("hardware=h100", "hardware.gpus_per_node=8")
    assert [size.gpus for size in scaling.sizes] == [1, 2, 4, 8, 16, 32, 64]
    assert scaling.end.startswith("a step of 64 sequences cannot be shared by 128 processes")


@pytest.mark.parametrize(
    "overrides",
    [
        ("hardware=h100", "hardware.gpus_per_node=8", "hardware.nodes=2"),
        ("hardware=a100", "hardware.gpus_per_node=4", "hardware.micro_batch.2048=2", *SLOW),
        ("hardware=a100", "hardware.gpus_per_node=4", "hardware.parallel=fsdp", *SLOW),
        ("hardware=h100", "hardware.gpus_per_node=2", "hardware.micro_batch=auto", "hardware.parallel=fsdp"),
    ],
)
def test_each_size_takes_as_long_as_a_plan_for_it(scaled, overrides):
    config, precision, scaling = scaled(*overrides)
    per_node = config.hardware.gpus_per_node
    for size in scaling.sizes:
        there = replace(config.hardware, nodes=max(1, size.gpus // per_node), gpus_per_node=min(size.gpus, per_node))
        plan = make_plan(replace(config, hardware=there), CUDA, precision, size.gpus)
        assert size.seconds == pytest.approx(sum(stage.seconds for stage in plan.stages))
        assert size.communication == pytest.approx(plan.communication)
        assert size.gpu_hours == pytest.approx(size.gpus * size.seconds / 3600)
    assert scaling.sizes[0].communication_seconds == 0


@pytest.mark.parametrize(
    ("overrides", "most", "end"),
    [
        (("hardware=rtx4090", "hardware.gpus_per_node=4"), 4, "hardware.node_bandwidth is unknown"),
        (("hardware=h100", "hardware.gpus_per_node=4", "hardware.gpu_bandwidth=null"), 1, "hardware.gpu_bandwidth is"),
        (("hardware=h100", "curriculum=none", "curriculum.max_step_tokens=16384"), 8, "a step of 8 sequences cannot"),
    ],
)
def test_the_end_has_a_reason(scaled, overrides, most, end):
    _, _, scaling = scaled(*overrides)
    assert scaling.sizes[-1].gpus == most and scaling.end.startswith(end)


# --- where it stops paying


def scaling_of(seconds: list[float]) -> Scaling:
    return Scaling([Size(2**index, time, 0.0) for index, time in enumerate(seconds)], "")


def pays_from(seconds: list[float], smaller: int, larger: int) -> float:
    """At least 1 where going from the one size to the other pays."""
    return seconds[smaller] / seconds[larger] / PAYS ** (larger - smaller)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=10))
def test_the_last_that_pays_is_found_by_trying_all(seconds):
    pairs = [(smaller, larger) for larger in range(len(seconds)) for smaller in range(larger)]
    assume(all(abs(pays_from(seconds, *pair) - 1) > 1e-9 for pair in pairs))
    paying = [
        larger
        for larger in range(len(seconds))
        if all(pays_from(seconds, smaller, larger) > 1 for smaller in range(larger))
    ]
    assert scaling_of(seconds).best == max(paying)


@given(st.lists(st.floats(0.5, 2), max_size=9))
def test_where_doublings_pay_less_and_less_the_first_that_does_not_pay_ends_it(speedups):
    assume(all(abs(speedup - PAYS) > 1e-9 for speedup in speedups))
    seconds = [1000.0]
    for speedup in sorted(speedups, reverse=True):
        seconds.append(seconds[-1] / speedup)
    assert scaling_of(seconds).best == sum(speedup > PAYS for speedup in speedups)


def test_slow_links_end_it_early(scaled):
    _, _, fast = scaled("hardware=h100", "hardware.gpus_per_node=8")
    _, _, slow = scaled("hardware=h100", "hardware.gpus_per_node=8", "hardware.node_bandwidth=10")
    assert fast.best == len(fast.sizes) - 1
    assert slow.sizes[slow.best].gpus == 8, "a node"
    assert slow.sizes[:4] == fast.sizes[:4]
