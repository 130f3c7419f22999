"""A benchmark as people read it: every figure is there and whole, and names are shown as they are."""

import io
import json
from dataclasses import replace

import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from yxanul.benchmarking.ceilings import Ceilings
from yxanul.benchmarking.measure import Benchmark, Result, StageResult
from yxanul.reporting.benchmark_table import benchmark_page, benchmark_tables

LENGTHS = [8, 64, 2048, 2048]  # of the first composition; max_seq_len makes lengths recur
GIB = 2**30
HOSTILE = "a=[red]1[/red] :smile: <script>alert(1)</script>"


def stage(number: int, seq_len: int, scale: float, kernel: str) -> StageResult:
    return StageResult(
        stage=number,
        seq_len=seq_len,
        step_tokens=131_072,
        micro_batch_tokens=131_072 // number,
        attention=kernel,
        tokens_per_second=scale * 123_400 * number,
        bytes_per_second=scale * 789_100 * number,
        mfu=0.1 * number + 0.0123,
        step_seconds=0.5 / scale,
        phases={"data": 0.001 * number, "forward": 0.3, "backward": 0.6, "optimizer": 0.1 - 0.001 * number},
        attention_share=0.05 * number,
        head_and_loss_share=0.2 / number,
        stage_change_seconds=1.2345 * (number - 2),
        peak_bytes=int(10 * number * GIB * scale),
        predicted_bytes=11 * number * GIB,
    )


BASE = Result(
    name="base",
    parameters=197_000_000,
    computes="bf16",
    cross_entropy="liger",
    compiled=True,
    warm_up_seconds=123.4,
    compile_seconds=101.2,
    recompiles=0,
    tokens_per_second=345_600.0,
    bytes_per_second=1_780_000.0,
    mfu=0.437,
    run_seconds=7500.0,
    ratio=None,
    stage_ratios=None,
    stages=[stage(number, length, 1, "varlen") for number, length in enumerate(LENGTHS, start=1)],
)
OTHER = replace(
    BASE,
    name=HOSTILE,
    computes="fp32 (this CPU has no bf16 units)",
    cross_entropy="chunked",
    compiled=False,
    warm_up_seconds=9.8,
    compile_seconds=0.0,
    recompiles=3,
    tokens_per_second=99_900.0,
    bytes_per_second=456_000.0,
    mfu=0.219,
    run_seconds=200_000.0,
    ratio=0.2891,
    stage_ratios=[0.511, None],
    stages=[stage(1, 8, 0.5, "sdpa"), stage(2, 1024, 0.5, "flex")],
)
FOUND = Benchmark(
    command="python -m yxanul.benchmark 'compare=[<i>]'",
    date="2026-11-23T01:02:03+00:00",
    device="NVIDIA <H100> [bold]",
    machine={"processor": "AMD EPYC 9B14", "cores": 24, "threads": 7},
    versions={"yxanul": "0.1.0", "torch": "2.13.0+cu128"},
    rounds=5,
    ceilings=Ceilings({"fp32": 52.3e12, "bf16": 789.6e12}, 2.95e12),
    results=[BASE, OTHER],
)
ROWS = [  # of the first composition, then of the other
    "1 8 131,072 varlen 123k 789k 11.2 10.0G 11.0G +10 0.1 30.0 60.0 9.9 5.0 20.0 -1,234.5",
    "2 64 65,536 varlen 247k 1.58M 21.2 20.0G 22.0G +10 0.2 30.0 60.0 9.8 10.0 10.0 0.0",
    "3 2048 43,690 varlen 370k 2.37M 31.2 30.0G 33.0G +10 0.3 30.0 60.0 9.7 15.0 6.7 1,234.5",
    "4 2048 32,768 varlen 494k 3.16M 41.2 40.0G 44.0G +10 0.4 30.0 60.0 9.6 20.0 5.0 2,469.0",
    "all 346k 1.78M 43.7",
    "1 8 131,072 sdpa 61.7k 395k 11.2 5.0G 11.0G +120 0.511 0.1 30.0 60.0 9.9 5.0 20.0 -1,234.5",
    "2 1024 65,536 flex 123k 789k 21.2 10.0G 22.0G +120 – 0.2 30.0 60.0 9.8 10.0 10.0 0.0",
    "all 99.9k 456k 21.9 0.289",
]
SUMMARY = ["base 346k 1.78M 43.7 2 h 05 min –", f"{HOSTILE} 99.9k 456k 21.9 2.3 days 0.289"]


def lines(found: Benchmark, width: int = 120) -> list[str]:
    """What is printed, with one space where there are several."""
    console = Console(width=width, file=io.StringIO())
    console.print(benchmark_tables(found))
    printed = console.file.getvalue().splitlines()
    assert max(map(len, printed)) <= width
    assert not any("…" in line for line in printed)
    return [" ".join(line.split()) for line in printed]


def test_a_row_a_stage_and_one_for_all():
    assert [line for line in lines(FOUND) if line in ROWS] == ROWS


def test_a_narrow_terminal_gets_the_same_in_two_tables():
    narrow = lines(FOUND, 80)
    assert not set(ROWS[:4]) & set(narrow)
    for row in ROWS[:4]:
        cells = row.split()
        assert " ".join(cells[:10]) in narrow
        assert " ".join([*cells[:2], *cells[10:]]) in narrow
    assert ROWS[4] in narrow and ROWS[7] in narrow
    assert sum(line.startswith("all") for line in narrow) == 2


def test_the_header_says_what_was_measured_on():
    assert lines(FOUND)[:5] == [
        "device NVIDIA <H100> [bold]",
        "processor AMD EPYC 9B14, cores 24, threads 7",
        "versions yxanul 0.1.0, torch 2.13.0+cu128",
        "ceilings fp32 52.3 TFLOP/s, bf16 789.6 TFLOP/s, copy 2950 GB/s",
        "rounds 5",
    ]


def test_a_composition_says_what_runs():
    shown = lines(FOUND)
    at = shown.index("base")
    assert shown[at + 1 : at + 3] == [
        "197M parameters, bf16, compiled, cross-entropy liger",
        "warm-up 123.4 s, 101.2 s of it compilation; the run as planned: 2 h 05 min",
    ]
    at = shown.index(HOSTILE)
    assert shown[at + 1 : at + 4] == [
        "197M parameters, fp32 (this CPU has no bf16 units), eager, cross-entropy chunked",
        "warm-up 9.8 s; the run as planned: 2.3 days",
        "compiled after the warm-up: 3 graphs; a run would stop for them too",
    ]


def test_only_recompiles_are_warned_of():
    assert sum("after the warm-up" in line for line in lines(FOUND)) == 1
    none = replace(FOUND, results=[BASE, replace(OTHER, recompiles=0)])
    assert not any("after the warm-up" in line for line in lines(none))


def test_several_compositions_are_summed_up():
    assert [line for line in lines(FOUND) if line in SUMMARY] == SUMMARY
    alone = lines(replace(FOUND, results=[BASE]))
    assert not set(SUMMARY) & set(alone) and not any("composition tokens/s" in line for line in alone)


def test_small_memory_is_shown_in_smaller_units():
    small = replace(BASE.stages[0], peak_bytes=250 * 2**20, predicted_bytes=200 * 2**20)
    shown = lines(replace(FOUND, results=[replace(BASE, stages=[small])]))
    assert any("250M 200M -20" in line for line in shown)


@pytest.fixture(scope="module")
def page() -> str:
    """The page without plotly's own code."""
    whole = benchmark_page(FOUND)
    own = whole.replace(get_plotlyjs(), "")
    assert len(own) < len(whole) / 10
    return own


def plotted(page: str) -> list[dict]:
    """The traces of its figure."""
    at = page.index("[{", page.index("Plotly.newPlot("))
    return json.JSONDecoder().raw_decode(page, at)[0]


def test_the_page_needs_nothing_else_and_its_texts_are_no_markup(page):
    assert not any(part in page for part in ("http:", "https:", "src=", "<link", "@import"))
    assert "alert(1)</script>" not in page
    for text in (
        "python -m yxanul.benchmark &#x27;compare=[&lt;i&gt;]&#x27;",
        "2026-11-23T01:02:03+00:00",
        "device: NVIDIA &lt;H100&gt; [bold]",
        "ceilings: fp32 52.3 TFLOP/s",
    ):
        assert text in page
    names = {trace["name"] for trace in plotted(page)}
    assert "a=[red]1[/red] :smile: &lt;script&gt;alert(1)&lt;/script&gt;" in names


def test_the_page_plots_each_composition(page):
    lines = [trace for trace in plotted(page) if trace["type"] == "scatter"]
    for group, result in enumerate(FOUND.results):
        drawn = [trace for trace in lines if trace["legendgroup"] == str(group)]
        assert all(trace["x"] == [stage.seq_len for stage in result.stages] for trace in drawn)
        assert [trace["y"] for trace in drawn] == [
            [stage.tokens_per_second for stage in result.stages],
            [stage.mfu for stage in result.stages],
            [stage.peak_bytes / GIB for stage in result.stages],
            [stage.predicted_bytes / GIB for stage in result.stages],
        ]
        assert [trace["showlegend"] for trace in drawn] == [True, False, False, False]
    assert len(lines) == 8
    text = lines[0]["hovertext"][1]
    for part in ("stage 2, length 64", "247k tokens/s", "MFU 21.2%", "65,536", "500.0 ms", "varlen", "22.0G (+10%)"):
        assert part in text


def test_the_page_plots_where_the_time_of_the_first_goes(page):
    bars = {trace["name"]: trace for trace in plotted(page) if trace["type"] == "bar"}
    assert list(bars) == ["data", "forward", "backward", "optimizer", "attention", "head and loss"]
    for name in ("data", "forward", "backward", "optimizer"):
        assert bars[name]["y"] == [stage.phases[name] for stage in BASE.stages]
    assert bars["attention"]["y"] == [stage.attention_share for stage in BASE.stages]
    assert bars["head and loss"]["y"] == [stage.head_and_loss_share for stage in BASE.stages]
    assert bars["attention"]["offsetgroup"] != bars["forward"]["offsetgroup"], "they stand beside the phases"
    for trace in bars.values():
        assert len(set(trace["x"])) == len(LENGTHS), "stages of the same length have bars of their own"
        assert len({trace["marker"]["color"] for trace in bars.values()}) == len(bars)
    assert bars["forward"]["hovertext"][0] == "forward: 30.0% of the step, 150.0 ms"
