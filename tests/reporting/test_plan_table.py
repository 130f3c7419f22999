"""The plan as people read it: durations, quantities, rows, totals and warnings."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from yxanul.planning import make_plan
from yxanul.precision.linear import build_precision
from yxanul.reporting.plan_table import duration, plan_table, quantity

UNITS = {"s": 1, "min": 60, "h": 3600, "days": 86400}


@pytest.fixture(scope="module")
def plan(compose):
    config = compose("model=yxanul_197m", "precision=bf16", "tokenizer=t80k", "curriculum=ultra", "hardware=h100")
    device = torch.device("cuda")
    return make_plan(config, device, build_precision(config.precision, device))


def rendered(plan, width: int = 140) -> list[str]:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(plan_table(plan))
    return capture.get().splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (7199, "1 h 59 min"),
        (47 * 3600 + 1800, "47 h 30 min"),
        (48 * 3600, "2.0 days"),
        (2_000_000, "23.1 days"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@given(st.floats(0, 1e9))
def test_a_duration_reads_back(seconds):
    parts = re.findall(r"([\d.]+) (s|min|h|days)", duration(seconds))
    assert " ".join(f"{number} {unit}" for number, unit in parts) == duration(seconds)
    units = [unit for _, unit in parts]
    smallest = 8640 if units == ["days"] else UNITS[units[-1]]
    assert abs(sum(float(number) * UNITS[unit] for number, unit in parts) - seconds) <= smallest * 1.01
    if len(parts) == 2:
        assert float(parts[1][0]) < 60, "sixty seconds are a minute"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1k"),
        (65536, "65.5k"),
        (999_600, "1M"),
        (2.61e9, "2.61G"),
        (3e15, "3P"),
    ],
)
def test_quantity(value, text):
    assert quantity(value) == text


@given(st.integers(0, 10**17))
def test_a_quantity_reads_back_to_half_a_percent(value):
    number, unit = re.fullmatch(r"([\d.]+)([kMGTP]?)", quantity(value)).groups()
    power = " kMGTP".index(unit) if unit else 0
    assert float(number) * 1000**power == pytest.approx(value, rel=0.0051)
    assert len(number) <= 4


def test_a_row_a_stage_and_a_total(plan):
    lines = rendered(plan)
    rows = [line.split() for line in lines if re.match(r" *\d+ +\d+ ", line)]
    assert [int(row[0]) for row in rows] == [stage.stage for stage in plan.stages]
    for row, stage in zip(rows, plan.stages, strict=True):
        expected = [
            stage.stage,
            stage.seq_len,
            f"{stage.sequences:,}",
            stage.micro_batches,
            f"{stage.steps:,}",
            quantity(stage.tokens),
            quantity(stage.bytes),
        ]
        assert row[:7] == [str(cell) for cell in expected]
        assert " ".join(row).endswith(duration(stage.seconds))
    (total,) = (line.split() for line in lines if line.split()[:1] == ["all"])
    assert total[1:4] == [
        f"{len(plan.steps):,}",
        quantity(sum(stage.tokens for stage in plan.stages)),
        quantity(sum(stage.bytes for stage in plan.stages)),
    ]
    assert " ".join(total).endswith(duration(sum(stage.seconds for stage in plan.stages)))


def test_the_header_says_what_computes_where(plan):
    header = rendered(plan)[0]
    for part in (quantity(plan.parameters), quantity(plan.layer_parameters), "bf16", "989 TFLOP/s", plan.device):
        assert part in header


def test_the_header_says_what_share_is_communication_where_there_is_some(plan):
    def header(**changes) -> str:
        return " ".join(" ".join(rendered(replace(plan, **changes))).partition(" stage ")[0].split())

    waiting = [replace(stage, communication_seconds=stage.seconds / 8) for stage in plan.stages]
    assert "communication" not in header()
    assert header(processes=2, stages=waiting).endswith("; communication 12.5% of the time")
    assert header(processes=2, uncounted="for a reason").endswith("; communication not counted (for a reason)")


def test_nothing_is_cut_off(plan):
    assert not [line for line in rendered(plan) if "…" in line]


def test_warnings_stand_below(plan):
    assert "GiB" not in "\n".join(rendered(plan))
    warned = rendered(replace(plan, memory_limit=2**30, skipped=[3, 4]))
    assert "is more than the device's 1.0 GiB" in " ".join(warned)
    assert "left out: 3, 4" in warned[-1]
