"""The report of several runs as a page for a browser: a file that needs nothing but itself.

What is shown is computed here, and stands in the page as JSON; report_page.js draws it with Plotly.
Names, configurations and samples are anyone's text: it is escaped where it stands as HTML, and so are the names
in the JSON, which Plotly reads as HTML.
"""

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from importlib import resources
from itertools import accumulate, groupby
from operator import mul
from statistics import median
from typing import Any

from yxanul.ledger.attribution import Factor
from yxanul.ledger.differences import differences
from yxanul.ledger.quality import AXES
from yxanul.ledger.runs import Moment, Run, Times

MAX_POINTS = 2_000  # of a training curve: more cannot be told apart, and would make the file large
LABEL_WIDTH = 36  # letters of a name in a line of a plot; a screen of 400 pixels holds them
COLORS = 8  # --run-0 and so on, of report_page.css
DASHES = ("solid", "dashed", "dotted")  # tell runs apart that share a colour, as in report_page.js
ABSENT = "–"
PARTS = {field.name: field.name.replace("_", "-") for field in fields(Times)}
"""Fields of Times, as they are called in the page."""
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""What the page may load: nothing from anywhere. Images are those that Plotly makes to be saved."""


@dataclass(frozen=True)
class PageTable:
    """A table of texts; the first column names the rows."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Worth:
    """What choices were worth, to be drawn.

    Attributes:
        cumulative: each begins where the one before ends; else at 1.
        whole: drawn last, from 1.
    """

    title: str
    factors: Sequence[Factor]
    cumulative: bool
    whole: Factor | None = None


def report_page(
    runs: Sequence[Run], tables: Sequence[PageTable], about: Sequence[str], command: str, worth: Worth | None = None
) -> str:
    """An HTML page about runs, finished or not.

    Args:
        tables: to stand above the plots.
        about: lines about what is reported and when, as plain text.
        command: what made the page, likewise.
        worth: what choices were worth, if that is known.
    """
    from plotly.offline import get_plotlyjs

    data = {"axes": AXES, "parts": PARTS, "runs": [_data(run) for run in runs], "worth": worth and _worth(worth)}
    drawn = [_section(worth.title, _plot("worth"))] if worth else []
    sections = [
        *map(_table, tables),
        *drawn,
        _curves(runs),
        _speed(runs),
        *_positions(runs),
        _section("Where the time went", _plot("times")),
    ]
    finished = [run for run in runs if run.result]
    if len(runs) > 1:
        sections.append(_differences(runs))
    if finished:
        sections += [_samples(finished), _environment(finished)]
    lines = "<br>".join([*map(escape, about), f"<code>{escape(command)}</code>"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Report</title>\n<style>\n{_source('report_page.css')}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>Report</h1>\n<p>{lines}</p>\n<noscript><p>The plots need JavaScript.</p></noscript>\n"
        f"{''.join(sections)}</main>\n"
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n<script>\n{_source('report_page.js')}</script>\n</body>\n</html>\n"
    )


def _source(name: str) -> str:
    return resources.files("yxanul.reporting").joinpath(name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends that or begins a comment."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


# The data of the plots


def _data(run: Run) -> dict[str, Any]:
    """What the plots show of a run."""
    kept = _spread(len(run.training))
    return {
        "label": _label(run.name),
        "moments": _columns(run.moments),
        "steps": {
            **_columns([run.training[index] for index in kept]),
            "stage": [run.steps[index]["stage"] for index in kept],
            "seq_len": [run.steps[index]["seq_len"] for index in kept],
        },
        "stages": list(_stages(run)),
        "positions": _by_position(run),
        "times": {part: _number(getattr(run.times, part)) for part in PARTS},
    }


def _by_position(run: Run) -> list[dict[str, Any]]:
    """How well tokens are predicted by how many there were before; nothing of a run that is not finished."""
    return run.result.get("by_position", []) if run.result else []


def _label(name: str) -> str:
    return "<br>".join(map(escape, textwrap.wrap(name, LABEL_WIDTH)))


def _worth(worth: Worth) -> list[dict[str, Any]]:
    starts = accumulate((factor.total.ratio if worth.cumulative else 1 for factor in worth.factors), mul, initial=1)
    bars = [*zip(worth.factors, starts, strict=False), *([(worth.whole, 1)] if worth.whole else [])]
    return [
        {
            "label": _label(factor.name),
            "start": start,
            "sure": "" if factor.total.low is None else f" ({factor.total.low:.3g} to {factor.total.high:.3g})",
            **{part: asdict(getattr(factor, part)) for part in ("total", "learning", "throughput")},
        }
        for factor, start in bars
    ]


def _spread(count: int) -> list[int]:
    """Indices of at most MAX_POINTS of `count` points: evenly, with the first and the last."""
    if count <= MAX_POINTS:
        return list(range(count))
    return [index * (count - 1) // (MAX_POINTS - 1) for index in range(MAX_POINTS)]


def _columns(points: Sequence[Moment]) -> dict[str, list[float | None]]:
    return {field.name: [_number(getattr(point, field.name)) for point in points] for field in fields(Moment)}


def _number(value: float | None) -> float | None:
    """Short, as the file holds many of them; None if there is no such number in JSON."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _stages(run: Run) -> Iterator[dict[str, Any]]:
    """The stages that were trained in: where they begin and end on each axis, their speed and utilization."""
    start = dict.fromkeys(AXES, 0.0) | dict.fromkeys(("prepared_seconds", "total_seconds"), run.times.before)
    for stage, group in groupby(zip(run.steps, run.training, strict=True), key=lambda pair: pair[0]["stage"]):
        rows, points = zip(*group, strict=True)
        end = {axis: _number(getattr(points[-1], axis)) for axis in AXES}
        yield {
            "stage": stage,
            "seq_len": rows[0]["seq_len"],
            "start": start,
            "end": end,
            "bytes_per_second": _median(rows, "bytes_per_second"),
            "mfu": _median(rows, "mfu"),
        }
        start = end


def _median(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Of the rows that know it: the first steps of a stage are slow, and are not to count for more than others."""
    known = [row[name] for row in rows if row.get(name) is not None]
    return _number(median(known)) if known else None


# The parts of the page


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n"


def _plot(name: str, title: str = "") -> str:
    heading = f"<h3>{escape(title)}</h3>\n" if title else ""
    return f'{heading}<div id="{name}" class="plot"></div>\n'


def _table(table: PageTable, figures: bool = True) -> str:
    """A table in a box of its own that scrolls sideways, by keyboard too.

    Args:
        figures: columns of nothing but numbers are figures to be compared, and stand at the right.
    """
    numbers = [figures and _are_numbers(column) for column in zip(*table.rows, strict=True)]
    numbers = numbers or [False] * len(table.header)

    def row(cells: Sequence[str], tag: str) -> str:
        marked = [
            f'<{tag} class="number">{escape(cell)}</{tag}>' if number else f"<{tag}>{escape(cell)}</{tag}>"
            for cell, number in zip(cells, numbers, strict=True)
        ]
        return f"<tr>{''.join(marked)}</tr>\n"

    body = "".join(row(cells, "td") for cells in table.rows)
    return _section(
        table.title,
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">\n'
        f"<table>\n<thead>\n{row(table.header, 'th')}</thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n",
    )


def _are_numbers(cells: Sequence[str]) -> bool:
    return all(cell in ("", ABSENT) or cell.lstrip("+-−±")[:1].isdigit() for cell in cells)


def _curves(runs: Sequence[Run]) -> str:
    axes = "".join(f'<option value="{axis}">{title}</option>' for axis, title in AXES.items())
    names = "".join(f'<option value="{index}">{escape(run.name)}</option>' for index, run in enumerate(runs))
    shown = "".join(
        f'<label><input type="checkbox" class="run" value="{index}" checked>'
        f'<span class="swatch" style="border-color: var(--run-{index % COLORS}); '
        f'border-top-style: {DASHES[index // COLORS % len(DASHES)]}"></span>'
        f"<span>{escape(run.name)}{'' if run.result else ' (not finished)'}</span></label>\n"
        for index, run in enumerate(runs)
    )
    apart = len({run.held_out for run in runs if run.moments}) > 1
    return _section(
        "Quality against cost",
        "<p>Lines with points: bits per byte of the held-out text; faint lines: of the training batches, smoothed.</p>",
        "<p><strong>Not all runs were judged on the same text and context.</strong></p>" if apart else "",
        f'<fieldset class="runs">\n<legend>Runs shown in all plots</legend>\n{shown}</fieldset>\n'
        '<div class="controls">\n'
        f'<label>x axis <select id="axis">{axes}</select></label>\n'
        '<label><input type="checkbox" id="log-x"> log x</label>\n'
        '<label><input type="checkbox" id="log-y"> log y</label>\n'
        '<label>smoothing <input type="range" id="smoothing" min="0" max="0.99" step="0.01" value="0.9">'
        '<output for="smoothing" id="smoothed"></output></label>\n'
        f'<label>stages of <select id="stages"><option value="">the only run shown</option>{names}</select></label>\n'
        "</div>\n",
        _plot("curves"),
    )


def _speed(runs: Sequence[Run]) -> str:
    known = any(row.get("mfu") is not None for run in runs for row in run.steps)
    return _section(
        "Speed",
        "<p>Medians of the steps of each stage.</p>\n",
        _plot("speed", "Throughput by sequence length"),
        _plot("utilization", "Utilization by sequence length") if known else "<p>Utilization is not known.</p>\n",
    )


def _positions(runs: Sequence[Run]) -> Iterator[str]:
    if any(map(_by_position, runs)):
        yield _section(
            "Use of the context",
            "<p>Held-out tokens by how many tokens there were before them: where the line falls no more, the model "
            "makes nothing of a longer context.</p>\n",
            _plot("positions"),
        )


def _differences(runs: Sequence[Run]) -> str:
    """The keys whose values are not the same in all runs."""
    differing = differences([run.config for run in runs])
    rows = [[key, *(ABSENT if value is None else value for value in values)] for key, values in differing.items()]
    if not rows:
        return _section("What differs", "<p>Nothing: the configurations are the same.</p>\n")
    return _table(PageTable("What differs", ["key", *(run.name for run in runs)], rows), figures=False)


def _samples(finished: Sequence[Run]) -> str:
    parts = []
    for run in finished:
        texts = "".join(
            f"<pre><b>{escape(sample['prompt'])}</b>{escape(sample['text'])}</pre>\n"
            for sample in run.result["samples"]
        )
        parts.append(f"<details{'' if parts else ' open'}>\n<summary>{escape(run.name)}</summary>\n{texts}</details>\n")
    return _section("Samples", "<p>Beginnings of held-out documents in bold, and how the model goes on.</p>\n", *parts)


def _environment(finished: Sequence[Run]) -> str:
    names = dict.fromkeys(name for run in finished for name in run.result["versions"])
    rows = [
        [run.name, run.result["device"], *(run.result["versions"].get(name, ABSENT) for name in names)]
        for run in finished
    ]
    return _table(PageTable("Environment", ["run", "device", *names], rows), figures=False)
