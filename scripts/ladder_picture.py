"""The evidence of a ladder as a picture: what each rung was worth, on top of those before it, as an SVG beside it.

    python -m yxanul.report multirun_outputs/ladder --against previous --format json > ladder.json
    python scripts/ladder_picture.py ladder.json

Rungs that soon reach what all reach are better told apart at fewer bits per byte: `--target` makes another such file,
and where several compare a rung with the one before, the last of them counts. The picture is put beside the first.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from yxanul.ledger.attribution import Estimate

WIDTH, TOP, ROW, BAR = 800, 76, 34, 18  # pixels
LEFT, RIGHT, FIGURES = 140, 570, 600  # where the plot begins and ends, and the figures begin
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
TEXT, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d8dee4", "#ffffff"  # a paper of its own: a page may be dark
FASTER, SLOWER, PALE = "#0969da", "#bc4c00", 0.35


class Rung(NamedTuple):
    """A rung of the ladder, and how many times as fast as the one before it gets to `target` bits per byte."""

    name: str
    worth: Estimate
    target: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evidence", type=Path, nargs="+")
    paths = parser.parse_args().evidence
    comparisons = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    svg = picture(rungs(comparisons), ", ".join([comparisons[0]["date"][:10], *comparisons[0]["devices"]]))
    ElementTree.indent(svg)
    text = ElementTree.tostring(svg, encoding="unicode") + "\n"
    paths[0].with_suffix(".svg").write_text(text, encoding="utf-8")


def rungs(comparisons: Sequence[dict[str, Any]]) -> list[Rung]:
    """Those that are compared with the rung before, in the order of the first comparison."""
    found = {}
    for comparison in comparisons:
        for choice in (choice for choice in comparison["choices"] if choice["factor"]):
            name = choice["choice"].rpartition("/")[2]
            found[name] = Rung(name, Estimate(**choice["factor"]["total"]), comparison["target"])
    return list(found.values())


def picture(ladder: Sequence[Rung], about: str) -> ElementTree.Element:
    """A bar a rung, on an axis of logarithms from where the bar before it ends, with its 95% interval as a line."""
    ends = list(accumulate((rung.worth.ratio for rung in ladder), mul))
    bars = list(zip(ladder, [1.0, *ends[:-1]], strict=True))
    bounds = [start * end for rung, start in bars for end in (rung.worth.low, rung.worth.high) if end]
    low, high = math.log(min(1, *ends, *bounds) / 1.1), math.log(max(1, *ends, *bounds) * 1.1)

    def across(times: float) -> float:
        return LEFT + (RIGHT - LEFT) * (math.log(times) - low) / (high - low)

    usual, bottom = ladder[0].target, TOP + ROW * len(ladder)
    elsewhere = ", ".join(f"{rung.name} at {rung.target:.2f}" for rung in ladder if rung.target != usual)
    title = f"Times as fast to {usual:.2f} bits per byte, rung by rung"
    notes = [
        "A bar begins where the one before it ends; lines are 95% intervals; what is pale was not told from 1.",
        about,
    ]
    notes += [f"Measured at other bits per byte: {elsewhere}."] if elsewhere else []
    height = bottom + 62 + 18 * len(notes)
    form = {"viewBox": f"0 0 {WIDTH} {height}", "width": f"{WIDTH}", "height": f"{height}"}
    form |= {"font-size": "13", "font-family": "system-ui, sans-serif", "role": "img", "aria-label": title}
    svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", **form)
    box(svg, 0.5, 0.5, WIDTH - 1, height - 1, PAPER, stroke=GRID, rx="10")
    write(svg, 20, 32, title, **{"font-size": "16", "font-weight": "600"})
    write(svg, LEFT, TOP - 12, "with all rungs so far", MUTED)
    write(svg, FIGURES, TOP - 12, "against the rung before", MUTED)
    for tick in (each for each in TICKS if low <= math.log(each) <= high):
        box(svg, across(tick), TOP, 1, bottom - TOP, MUTED if tick == 1 else GRID)
        write(svg, across(tick), bottom + 18, f"{tick:g}", MUTED, **{"text-anchor": "middle"})
    for place, (rung, start) in enumerate(bars):
        draw(svg, rung, start, TOP + ROW * place + ROW / 2, across)
    for color, text, left in ((FASTER, "faster", LEFT), (SLOWER, "slower", LEFT + 80)):
        box(svg, left, bottom + 32, 12, 12, color)
        write(svg, left + 18, bottom + 43, text, MUTED)
    for line, text in enumerate(notes):
        write(svg, 20, bottom + 68 + 18 * line, text, MUTED, **{"font-size": "12"})
    return svg


def draw(svg: ElementTree.Element, rung: Rung, start: float, middle: float, across: Callable[[float], float]) -> None:
    worth = rung.worth
    ends = sorted((across(start), across(start * worth.ratio)))
    color, opacity = FASTER if worth.ratio > 1 else SLOWER, 1 if worth.significant else PALE
    box(svg, ends[0], middle - BAR / 2, max(ends[1] - ends[0], 1), BAR, color, opacity=f"{opacity}", rx="2")
    write(svg, 20, middle + 4, rung.name)
    figures = f"{worth.ratio:.2f}"
    if worth.low and worth.high:
        left = across(start * worth.low)
        box(svg, left, middle - 0.5, across(start * worth.high) - left, 1, TEXT)
        figures += f" ({worth.low:.2f} to {worth.high:.2f})"
    write(svg, FIGURES, middle + 4, figures, **{"font-weight": "600" if worth.significant else "400"})


def box(svg: ElementTree.Element, x: float, y: float, width: float, height: float, fill: str, **more: str) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    ElementTree.SubElement(svg, "rect", place | {"fill": fill} | more)


def write(svg: ElementTree.Element, x: float, y: float, text: str, fill: str = TEXT, **more: str) -> None:
    ElementTree.SubElement(svg, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "fill": fill} | more).text = text


if __name__ == "__main__":
    main()
