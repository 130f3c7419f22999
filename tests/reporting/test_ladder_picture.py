"""The picture of the ladder in the README is that of its evidence."""

import json
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
EVIDENCE = SCRIPTS / "results" / "ladder-20261123.json"


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Runs the script on evidence; returns the SVG."""

    def run(evidence: dict) -> str:
        path = tmp_path / "evidence.json"
        path.write_text(json.dumps(evidence), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["ladder_picture.py", str(path)])
        runpy.run_path(str(SCRIPTS / "ladder_picture.py"), run_name="__main__")
        return path.with_suffix(".svg").read_text(encoding="utf-8")

    return run


def bars(svg: str) -> list[ElementTree.Element]:
    return [each for each in ElementTree.fromstring(svg).findall("{*}rect") if each.get("opacity")]


def comparison(*factors: tuple[str, float, float | None, float | None], target: float = 3.0) -> dict:
    """As `yxanul.report --against previous --format json` has it."""
    choices = [
        {"choice": name, "factor": {"total": {"ratio": ratio, "low": low, "high": high}, "pairs": 3}}
        for name, ratio, low, high in factors
    ]
    return {"target": target, "choices": [{"choice": "experiment=ladder/0_baseline", "factor": None}, *choices]}


def test_the_picture_is_that_of_the_evidence(draw):
    drawn = draw(json.loads(EVIDENCE.read_text(encoding="utf-8")))
    again = f"run: python scripts/ladder_picture.py scripts/results/{EVIDENCE.name}"
    assert drawn == EVIDENCE.with_suffix(".svg").read_text(encoding="utf-8"), again


def test_bars_go_on_from_one_another_and_later_comparisons_count(draw):
    names = [f"experiment=ladder/{name}" for name in ("1_loss", "2_muon", "3_batch")]
    first = comparison((names[0], 2.0, 1.5, 2.5), (names[1], 8.0, 7.0, 9.0), (names[2], 0.5, None, None))
    svg = draw(
        {
            "date": "2026-11-23",
            "device": "a < b",
            "one": first,
            "two": comparison((names[1], 4.0, 0.5, 9.0), target=2.5),
        }
    )
    loss, muon, batch = ((float(bar.get("x")), float(bar.get("width"))) for bar in bars(svg))
    assert muon[1] == pytest.approx(2 * loss[1], abs=0.2), "four times is twice as far as two times"
    assert muon[0] == pytest.approx(sum(loss), abs=0.2)
    assert sum(batch) == pytest.approx(sum(muon), abs=0.2), "half as fast goes back from there"
    assert [float(bar.get("opacity")) < 1 for bar in bars(svg)] == [False, True, True]
    texts = [each.text for each in ElementTree.fromstring(svg).findall("{*}text")]
    assert {"2.00 (1.50 to 2.50)", "4.00 (0.50 to 9.00)", "0.50", "2026-11-23, a < b"} < set(texts)
    assert "Measured at other bits per byte: 2_muon at 2.50." in texts
