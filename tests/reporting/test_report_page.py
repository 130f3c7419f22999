"""The report as a page: whole in itself, harmless whatever runs are called, and with the right figures."""

import json
import re
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from yxanul.ledger.attribution import Estimate, Factor
from yxanul.ledger.runs import Moment, Run, Times
from yxanul.reporting.report_page import MAX_POINTS, PageTable, Worth, report_page

HOSTILE = "<script>alert(1)</script>"
LENGTHS = [8, 64, 64]  # lengths recur
EVALUATION = 0.5  # seconds, every tenth step
RESULT = {
    "device": "NVIDIA <H100>",
    "versions": {"torch": "2.13.0", "python": "3.11.7"},
    "samples": [{"prompt": "def <b>", "text": " & so </pre>on"}],
}
TABLE = PageTable("Bits per <byte>", ["run", "bits/byte", "note"], [["a", "1.234", "first"], ["b", "–", HOSTILE]])


def rows(count: int) -> list[dict]:
    """Steps of a second, in thirds of a stage; before each, the evaluations of all tens of steps."""
    return [
        {
            "kind": "train",
            "step": step,
            "stage": (stage := (step - 1) * len(LENGTHS) // count + 1),
            "seq_len": LENGTHS[stage - 1],
            "tokens": 100 * step,
            "bytes": 400 * step,
            "bits_per_byte": 8 - 6 * step / count,
            "bytes_per_second": 1000.0 * stage + (50_000 if step % 10 == 1 else 0),
            "mfu": 0.125 * stage,
            "seconds": step + EVALUATION * ((step - 1) // 10),
        }
        for step in range(1, count + 1)
    ]


def training(steps: list[dict]) -> list[Moment]:
    flops = list(accumulate(100 * 7.0 * row["stage"] for row in steps))
    return [
        Moment(
            step=row["step"],
            tokens=row["tokens"],
            bytes=row["bytes"],
            flops=flops[row["step"] - 1],
            training_seconds=float(row["step"]),
            prepared_seconds=6.0 + row["step"],
            total_seconds=6 + row["seconds"],
            device_hours=2 * row["step"] / 3600,
            bits_per_byte=row["bits_per_byte"],
        )
        for row in steps
    ]


def run(name: str, count: int = 30, **changes) -> Run:
    steps = changes.pop("steps", rows(count))
    fields = {
        "name": name,
        "folder": Path(name),
        "config": {"optimizer": {"lr": 0.5, "betas": [0.8, 0.95]}, "seed": 1, "path": None},
        "plan": {
            "stages": [{"stage": number, "flops": 700.0 * number, "tokens": 100} for number in (1, 2, 3)],
            "processes": 2,
        },
        "result": RESULT,
        "steps": steps,
        "training": training(steps),
        "moments": [replace(each, bits_per_byte=each.bits_per_byte + 0.25) for each in training(steps)[9::10]],
        "times": Times(1, 2, 3, count, EVALUATION * count // 10),
        "held_out": "text",
    }
    return Run(**fields | changes)


def page(*runs: Run) -> str:
    """The page without Plotly's own code."""
    whole = report_page(runs, [TABLE], ["made <today>", "on a CPU"], "report 'folder=[<i>]'")
    own = whole.replace(get_plotlyjs(), "")
    assert len(whole) - len(own) == len(get_plotlyjs()), "once"
    return own


def data(own: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', own, re.DOTALL)
    return json.loads(found)


def drawn(own: str) -> list[dict]:
    return data(own)["runs"]


def section(own: str, title: str) -> str:
    return own.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]


def test_the_page_loads_nothing():
    own = page(run("a"), run("b"))
    assert not re.search(r"https?:|\bsrc=|\bhref=|url\(|@import|<link|<iframe", own)
    assert "default-src 'none'" in own
    assert '<html lang="en">' in own and '<meta name="viewport"' in own


def test_texts_of_runs_are_no_markup():
    config = {HOSTILE: {"a": HOSTILE}, "b": "</table>"}
    result = RESULT | {"device": HOSTILE, "samples": [{"prompt": HOSTILE, "text": HOSTILE}]}
    own = page(run(HOSTILE, config=config, result=result), run("<!--<script>"))
    assert own.count("<script") == 3 and own.count("</script>") == 3, "the data, Plotly and its caller"
    assert not re.search(r"<script>alert|<!--|</table>.*?</table>\s*</table>", own)
    labels = [each["label"] for each in drawn(own)]
    assert labels == ["&lt;script&gt;alert(1)&lt;/script&gt;", "&lt;!--&lt;script&gt;"], "Plotly reads them as HTML"


def test_long_names_are_broken_for_the_plots():
    name = "model.hidden_size=<256>,optimizer.lr=0.01,schedule.warmup=0.1"
    (only,) = drawn(page(run(name)))
    lines = only["label"].split("<br>")
    assert len(lines) > 1
    assert "".join(lines).replace("&lt;", "<").replace("&gt;", ">") == name


def test_what_is_given_is_shown():
    own = page(run("a"))
    assert "made &lt;today&gt;<br>on a CPU<br><code>report &#x27;folder=[&lt;i&gt;]&#x27;</code>" in own
    table = section(own, "Bits per &lt;byte&gt;")
    assert '<tr><th>run</th><th class="number">bits/byte</th><th>note</th></tr>' in table
    assert '<tr><td>a</td><td class="number">1.234</td><td>first</td></tr>' in table


def test_steps_and_evaluations_are_on_the_same_axes():
    (only,) = drawn(page(run("a")))
    steps, evaluations = only["steps"], only["moments"]
    assert evaluations["step"] == [10, 20, 30] and steps["step"] == list(range(1, 31))
    for axis in ("tokens", "bytes", "flops", "training_seconds", "prepared_seconds", "total_seconds", "device_hours"):
        assert [steps[axis][step - 1] for step in evaluations["step"]] == pytest.approx(evaluations[axis], rel=1e-5)
        assert steps[axis] == sorted(steps[axis])
    assert steps["training_seconds"] == list(range(1, 31)), "without evaluations"
    assert steps["bits_per_byte"][29] == 2 and evaluations["bits_per_byte"][2] == 2.25


def test_stages_have_bounds_and_medians():
    (only,) = drawn(page(run("a")))
    stages = only["stages"]
    assert [stage["seq_len"] for stage in stages] == LENGTHS
    assert [stage["bytes_per_second"] for stage in stages] == [1000, 2000, 3000], "not the slow or fast steps"
    assert [stage["mfu"] for stage in stages] == [0.125, 0.25, 0.375]
    assert [stage["start"]["tokens"] for stage in stages] == [0, 1000, 2000]
    assert [stage["end"]["tokens"] for stage in stages] == [1000, 2000, 3000]
    for axis in ("prepared_seconds", "total_seconds"):
        assert stages[0]["start"][axis] == 6, "what came before the first step"


def test_long_curves_are_thinned_evenly_to_their_last_step():
    (only,) = drawn(page(run("a", 10_000)))
    steps = only["steps"]["step"]
    assert len(steps) == MAX_POINTS == len(only["steps"]["bits_per_byte"])
    assert steps[0] == 1 and steps[-1] == 10_000
    gaps = {later - step for step, later in pairwise(steps)}
    assert gaps == {5, 6}
    assert only["stages"][-1]["end"]["tokens"] == 1_000_000, "all steps count for the stages"


def test_figures_that_are_not_known_are_left_out():
    steps = [row | {"mfu": None, "bits_per_byte": float("nan")} for row in rows(30)]
    own = page(run("a", steps=steps))
    assert "NaN" not in own
    assert drawn(own)[0]["steps"]["bits_per_byte"] == [None] * 30
    assert "Utilization is not known." in own and 'id="utilization"' not in own


def test_only_what_differs_is_compared():
    other = {"optimizer": {"lr": 0.25, "betas": [0.8, 0.9]}, "seed": 1, "path": None, "more": True}
    found = section(page(run("a"), run("<b>", config=other)), "What differs")
    assert re.findall("<tr>(.*?)</tr>", found) == [
        "<th>key</th><th>a</th><th>&lt;b&gt;</th>",
        "<td>optimizer.lr</td><td>0.5</td><td>0.25</td>",
        "<td>optimizer.betas.1</td><td>0.95</td><td>0.9</td>",
        "<td>more</td><td>–</td><td>true</td>",
    ]
    assert "Nothing" in section(page(run("a"), run("b")), "What differs")


def test_runs_that_cannot_be_compared_are_told():
    told = "Not all runs were judged on the same text and context."
    assert told in page(run("a"), run("b", held_out="other text"))
    assert told not in page(run("a"), run("b"), run("c", held_out="", moments=[]))


@pytest.mark.parametrize(("cumulative", "starts"), [(True, [1, 2, 1]), (False, [1, 1, 1])])
def test_bars_of_worth_begin_where_the_one_before_ends_or_at_one_and_the_whole_at_one(cumulative, starts):
    twice, thrice, whole = (
        Factor(name, Estimate(ratio, low, high), Estimate(1.0, None, None), Estimate(ratio, low, high), 3)
        for name, ratio, low, high in (("a", 2.0, 1.5, 2.5), ("<b>", 3.0, None, None), ("all", 6.0, 5.0, 7.0))
    )
    worth = Worth("Times as <fast>", [twice, thrice], cumulative, whole)
    own = report_page([run("a")], [], [], "python", worth)
    bars = data(own)["worth"]
    assert [bar["start"] for bar in bars] == starts
    assert [bar["label"] for bar in bars] == ["a", "&lt;b&gt;", "all"]
    assert [bar["total"]["ratio"] for bar in bars] == [2, 3, 6]
    assert [bar["sure"] for bar in bars] == [" (1.5 to 2.5)", "", " (5 to 7)"]
    assert "<h2>Times as &lt;fast&gt;</h2>" in own
    without = replace(worth, whole=None)
    assert len(data(report_page([run("a")], [], [], "python", without))["worth"]) == 2
    assert data(page(run("a")))["worth"] is None


def test_samples_and_environment_of_finished_runs():
    own = page(run("a"), run("on its way", result=None))
    assert "<pre><b>def &lt;b&gt;</b> &amp; so &lt;/pre&gt;on</pre>" in section(own, "Samples")
    environment = section(own, "Environment")
    assert "<td>a</td><td>NVIDIA &lt;H100&gt;</td>" in environment and "2.13.0" in environment
    assert "on its way" not in environment
    assert "on its way (not finished)" in own


@pytest.mark.parametrize(
    "changes",
    [{"result": None}, {"moments": []}, {"steps": [], "training": [], "moments": [], "result": None}],
    ids=["unfinished", "not evaluated", "not a step"],
)
def test_one_run_is_enough_whatever_it_lacks(changes):
    only = replace(run("a"), **changes)
    own = page(only)
    assert "What differs" not in own
    assert ("Samples" in own) == (only.result is not None)
    (found,) = drawn(own)
    assert len(found["moments"]["step"]) == len(only.moments) and len(found["steps"]["step"]) == len(only.steps)
    assert found["times"] == {"preparation": 1, "start_up": 2, "warm_up": 3, "training": 30, "evaluation": 1}
