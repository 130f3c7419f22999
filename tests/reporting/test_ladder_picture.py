"""The picture of the ladder in the README is that of its evidence."""

import json
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
EVIDENCE = [SCRIPTS / "results" / name for name in ("ladder-20261201.json", "ladder-20261201-late.json")]


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Runs the script on what `yxanul.report` printed, a file each; returns the SVG."""

    def run(*evidence: str) -> str:
        paths = [tmp_path / f"{number}.json" for number in range(len(evidence))]
        for path, text in zip(paths, evidence, strict=True):
            path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["ladder_picture.py", *map(str, paths)])
        runpy.run_path(str(SCRIPTS / "ladder_picture.py"), run_name="__main__")
        [svg] = tmp_path.glob("*.svg")
        return svg.read_text(encoding="utf-8")

    return run


def bars(svg: str) -> list[ElementTree.Element]:
    return [each for each in ElementTree.fromstring(svg).findall("{*}rect") if each.get("opacity")]


def comparison(*factors: tuple[str, float, float | None, float | None], target: float = 3.0) -> str:
    """As `yxanul.report --against previous --format json` has it."""
    choices = [
        {"choice": name, "factor": {"total": {"ratio": ratio, "low": low, "high": high}, "pairs": 3}}
        for name, ratio, low, high in factors
    ]
    choices = [{"choice": "experiment=ladder/0_baseline", "factor": None}, *choices]
    return json.dumps({"date": "2026-11-23T01:02:03+00:00", "devices": ["a < b"], "target": target, "choices": choices})


def test_the_picture_is_that_of_the_evidence(draw):
    drawn = draw(*(path.read_text(encoding="utf-8") for path in EVIDENCE))
    again = f"run: python scripts/ladder_picture.py {' '.join(f'scripts/results/{path.name}' for path in EVIDENCE)}"
    assert drawn == EVIDENCE[0].with_suffix(".svg").read_text(encoding="utf-8"), again


def test_bars_go_on_from_one_another_and_later_comparisons_count(draw):
    names = [f"experiment=ladder/{name}" for name in ("1_loss", "2_muon", "3_batch")]
    first = comparison((names[0], 2.0, 1.5, 2.5), (names[1], 8.0, 7.0, 9.0), (names[2], 0.5, None, None))
    svg = draw(first, comparison((names[1], 4.0, 0.5, 9.0), target=2.5))
    loss, muon, batch = ((float(bar.get("x")), float(bar.get("width"))) for bar in bars(svg))
    assert muon[1] == pytest.approx(2 * loss[1], abs=0.2), "four times is twice as far as two times"
    assert muon[0] == pytest.approx(sum(loss), abs=0.2)
    assert sum(batch) == pytest.approx(sum(muon), abs=0.2), "half as fast goes back from there"
    assert [float(bar.get("opacity")) < 1 for bar in bars(svg)] == [False, True, True]
    texts = [each.text for each in ElementTree.fromstring(svg).findall("{*}text")]
    assert {"2.00 (1.50 to 2.50)", "4.00 (0.50 to 9.00)", "0.50", "2026-11-23, a < b"} < set(texts)
    assert "Measured at other bits per byte: 2_muon at 2.50." in texts
