"""A benchmark for people: as tables that fit a terminal, and as a page with plots."""

import html
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from yxanul.benchmarking.measure import Benchmark, Result, StageResult
from yxanul.benchmarking.subject import PHASES
from yxanul.reporting.page import html_page
from yxanul.reporting.plan_table import duration, quantity

Columns = dict[str, list[str]]
"""Heading -> cells; headings are of two lines, so that they are no wider than the figures below."""

CAPTION = (
    "MFU: the model's FLOP/s against the measured ceiling of the same dtype; ratio: of tokens/s to the first's\n"
    "memory: of tensors, the most during a step; planned: as predicted, off: from what was measured\n"
    "data, fwd, bwd, opt: share of the step of reading, forward, backward and optimizer\n"
    "of it attn, head+loss: of attention in all layers, and of head and loss, measured apart; part of fwd and bwd\n"
    "change: what the first step takes longer that follows one of another stage"
)


def benchmark_tables(found: Benchmark) -> RenderableType:
    """What was measured on, a table of stages for each composition and, of several, a summary."""
    header = Table.grid(padding=(0, 2, 0, 0))
    for name, value in _machine(found):
        header.add_row(name, Text(value))
    compositions = [_composition(result) for result in found.results]
    summary = [_summary(found.results)] if len(found.results) > 1 else []
    return Group(header, *compositions, *summary, Text(f"\n{CAPTION}", "dim"))


def _machine(found: Benchmark) -> list[tuple[str, str]]:
    """What was measured on, by name."""
    machine, ceilings = found.machine, found.ceilings
    flops = [f"{name} {flops / 1e12:.4g} TFLOP/s" for name, flops in ceilings.matmul_flops.items()]
    return [
        ("device", found.device),
        ("processor", f"{machine['processor']}, cores {machine['cores']}, threads {machine['threads']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        ("ceilings", ", ".join([*flops, f"copy {ceilings.copy_bytes_per_second / 1e9:.4g} GB/s"])),
        ("rounds", str(found.rounds)),
    ]


def _composition(result: Result) -> RenderableType:
    compiling = f", {result.compile_seconds:.1f} s of it compilation" if result.compiled else ""
    lines = [
        f"{quantity(result.parameters)} parameters, {result.computes}, "
        f"{'compiled' if result.compiled else 'eager'}, cross-entropy {result.cross_entropy}",
        f"warm-up {result.warm_up_seconds:.1f} s{compiling}; the run as planned: {duration(result.run_seconds)}",
    ]
    recompiles = f"compiled after the warm-up: {result.recompiles} graphs; a run would stop for them too"
    return Group(
        Text(f"\n{result.name}", "bold"),
        *map(Text, lines),
        *([Text(recompiles, "yellow")] if result.recompiles else []),
        StageTable(_stage_names(result), [_speed_columns(result), _time_columns(result)]),
    )


class StageTable:
    """A row a stage and one for all; where the terminal is too narrow for it, its parts one below the other."""

    def __init__(self, names: Columns, parts: Sequence[Columns]):
        self._names, self._parts = names, parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = self._table(*self._parts)
        needed = console.measure(whole, options=options.update(width=1000)).minimum
        if needed <= options.max_width:
            yield whole
        else:
            yield from map(self._table, self._parts)

    def _table(self, *parts: Columns) -> Table:
        table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
        columns = [column for part in (self._names, *parts) for column in part.items()]
        for heading, _ in columns:
            table.add_column(heading, justify="right", no_wrap=True)
        *stages, whole = zip(*(cells for _, cells in columns), strict=True)
        for cells in stages:
            table.add_row(*cells)
        if any(whole[len(self._names) :]):  # where the time goes is told of stages alone
            table.add_row(*whole, style="bold")
        return table


def _stage_names(result: Result) -> Columns:
    return {
        "\nstage": _cells(result, lambda stage: str(stage.stage), "all"),
        "\nlength": _cells(result, lambda stage: str(stage.seq_len)),
    }


def _speed_columns(result: Result) -> Columns:
    columns = {
        "micro-\nbatch": _cells(result, lambda stage: f"{stage.micro_batch_tokens:,}"),
        "attention\nkernel": _cells(result, lambda stage: stage.attention),
        "\ntokens/s": _cells(
            result, lambda stage: quantity(stage.tokens_per_second), quantity(result.tokens_per_second)
        ),
        "bytes\n/s": _cells(result, lambda stage: quantity(stage.bytes_per_second), quantity(result.bytes_per_second)),
        "MFU\n%": _cells(result, lambda stage: _percent(stage.mfu), _percent(result.mfu)),
        "\nmemory": _cells(result, lambda stage: _memory(stage.peak_bytes)),
        "\nplanned": _cells(result, lambda stage: _memory(stage.predicted_bytes)),
        "off\n%": _cells(result, lambda stage: f"{100 * _off(stage):+z.0f}"),
    }
    if result.stage_ratios is not None:
        columns["\nratio"] = [_ratio(ratio) for ratio in (*result.stage_ratios, result.ratio)]
    return columns


def _time_columns(result: Result) -> Columns:
    headings = {"data": "data\n%", "forward": "fwd\n%", "backward": "bwd\n%", "optimizer": "opt\n%"}
    return {
        **{headings[name]: _cells(result, lambda stage, name=name: _percent(stage.phases[name])) for name in PHASES},
        "of it\nattn %": _cells(result, lambda stage: _percent(stage.attention_share)),
        "head+\nloss %": _cells(result, lambda stage: _percent(stage.head_and_loss_share)),
        "change\nms": _cells(result, lambda stage: f"{1000 * stage.stage_change_seconds:z,.1f}"),
    }


def _cells(result: Result, cell: Callable[[StageResult], str], whole: str = "") -> list[str]:
    """A cell a stage, and one for the whole curriculum."""
    return [*map(cell, result.stages), whole]


def _summary(results: Sequence[Result]) -> RenderableType:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("composition", overflow="fold")
    for heading in ("tokens/s", "bytes/s", "MFU %", "the run", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        speeds = quantity(result.tokens_per_second), quantity(result.bytes_per_second), _percent(result.mfu)
        table.add_row(Text(result.name), *speeds, duration(result.run_seconds), _ratio(result.ratio))
    return Group(Text(), table)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3f}"


def _memory(count: int) -> str:
    return f"{count / 2**30:.1f}G" if count >= 2**30 else f"{count / 2**20:.0f}M"


def _off(stage: StageResult) -> float:
    """How far the prediction of memory is off what was measured, as a share of it."""
    return stage.predicted_bytes / stage.peak_bytes - 1


def benchmark_page(found: Benchmark) -> str:
    """An HTML page with the plots that needs nothing but itself."""
    from plotly.subplots import make_subplots

    base = found.results[0]
    titles = (
        "Tokens/s by sequence length",
        "MFU by sequence length",
        f"Where the time of {html.escape(base.name)} goes; beside it, what of that are attention, head and loss",
        "Memory of tensors by sequence length: measured (line), planned (dashes)",
    )
    figure = make_subplots(4, 1, subplot_titles=titles, vertical_spacing=0.1)
    for index, result in enumerate(found.results):
        _add_lines(figure, index, result)
    _add_shares(figure, base)
    lengths = sorted({stage.seq_len for result in found.results for stage in result.stages})
    for row in (1, 2, 4):
        figure.update_xaxes(type="log", tickvals=lengths, title_text="sequence length in tokens", row=row)
    figure.update_xaxes(type="category", title_text="sequence length in tokens, and stage", row=3)
    for row, title in enumerate(("tokens/s", "MFU", "share of the step", "GiB"), start=1):
        figure.update_yaxes(title_text=title, rangemode="tozero", row=row)
    for row in (2, 3):
        figure.update_yaxes(tickformat=".0%", row=row)
    below_shares = figure.layout.yaxis3.domain[0] - 0.045  # and below the title of its axis
    figure.update_layout(
        template="plotly_white",
        height=1700,
        margin={"t": 60, "b": 60},
        barmode="stack",
        hoverlabel_namelength=-1,  # whole names
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},  # above all, as names may be long
        legend2={"orientation": "h", "y": below_shares, "traceorder": "normal"},
    )
    about = [found.date, *(f"{name}: {value}" for name, value in _machine(found))]
    return html_page("Benchmark", about, found.command, figure)


def _add_lines(figure: Any, index: int, result: Result) -> None:
    """A composition's speed, utilization and memory in rows 1, 2 and 4 of the figure."""
    from plotly.colors import qualitative

    color = qualitative.Plotly[index % len(qualitative.Plotly)]
    lengths = [stage.seq_len for stage in result.stages]
    shared = {
        "x": lengths,
        "name": html.escape(result.name),  # plotly reads names as HTML
        "legendgroup": str(index),
        "mode": "lines+markers",
        "marker_color": color,
        "hovertext": [_hover(stage) for stage in result.stages],
        "hoverinfo": "text+name",
    }
    plots = [
        (1, "solid", [stage.tokens_per_second for stage in result.stages]),
        (2, "solid", [stage.mfu for stage in result.stages]),
        (4, "solid", [stage.peak_bytes / 2**30 for stage in result.stages]),
        (4, "dash", [stage.predicted_bytes / 2**30 for stage in result.stages]),
    ]
    for row, dash, values in plots:
        figure.add_scatter(y=values, line_dash=dash, showlegend=row == 1, row=row, col=1, **shared)


def _add_shares(figure: Any, result: Result) -> None:
    """Row 3: a bar a stage of the phases, and beside it one of attention, head and loss."""
    from plotly.colors import qualitative

    stages = result.stages
    bars = [("phases", name, [stage.phases[name] for stage in stages]) for name in PHASES]
    bars.append(("apart", "attention", [stage.attention_share for stage in stages]))
    bars.append(("apart", "head and loss", [stage.head_and_loss_share for stage in stages]))
    for (group, name, shares), color in zip(bars, qualitative.Safe, strict=False):
        texts = [
            f"{name}: {share:.1%} of the step, {1000 * share * stage.step_seconds:,.1f} ms"
            for share, stage in zip(shares, stages, strict=True)
        ]
        figure.add_bar(
            x=[f"{stage.seq_len}<br>stage {stage.stage}" for stage in stages],  # lengths may recur, stages do not
            y=shares,
            name=name,
            offsetgroup=group,
            marker_color=color,
            legend="legend2",
            hovertext=texts,
            hoverinfo="text",
            row=3,
            col=1,
        )


def _hover(stage: StageResult) -> str:
    """What is known of a stage, for the points of the plots."""
    lines = [
        f"stage {stage.stage}, length {stage.seq_len}",
        f"{quantity(stage.tokens_per_second)} tokens/s, {quantity(stage.bytes_per_second)} bytes/s",
        f"MFU {stage.mfu:.1%}",
        f"step of {stage.step_tokens:,} tokens in {1000 * stage.step_seconds:,.1f} ms",
        f"micro-batch of {stage.micro_batch_tokens:,} tokens, attention {stage.attention}",
        f"memory {_memory(stage.peak_bytes)}, planned {_memory(stage.predicted_bytes)} ({_off(stage):+z.0%})",
    ]
    return "<br>".join(map(html.escape, lines))
