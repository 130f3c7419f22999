"""`python -m yxanul.report` on real runs, and on copies whose clocks are changed by a known factor."""

import csv
import io
import json
import re
import shutil
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
import yaml

from yxanul.ledger.quality import AXES
from yxanul.report import main
from yxanul.tracking import read_rows


def copy_of(folder: Path, to: Path, seed: int = 1, speed: float = 1.0, **keys) -> Path:
    """A copy of a run with another seed, other top-level keys, and every second `speed` times as short."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    config = yaml.safe_load((to / "config.yaml").read_text()) | keys | {"seed": seed}
    (to / "config.yaml").write_text(yaml.safe_dump(config))
    rows = read_rows(to / "metrics.jsonl")
    for row in rows:
        row.update({name: value / speed for name, value in row.items() if name.endswith("seconds")})
    (to / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return to


def chosen(run: Path, **choices: str) -> Path:
    """The run, as if it had been composed of other choices."""
    record = run / ".hydra" / "hydra.yaml"
    hydra = yaml.safe_load(record.read_text())
    assert hydra["hydra"]["runtime"]["choices"].keys() >= choices.keys()
    hydra["hydra"]["runtime"]["choices"] |= choices
    record.write_text(yaml.safe_dump(hydra))
    return run


@pytest.fixture
def folder(undisturbed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    return undisturbed[1]


def report(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def bars(page: Path) -> list[dict]:
    """What choices were worth, as a page draws it."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(data)["worth"]


def test_a_run_alone(capsys, folder, tmp_path):
    run = copy_of(folder, tmp_path / "run")
    status, out, err = report(capsys, run)
    assert (status, err) == (0, "")
    result = json.loads((run / "result.json").read_text())
    assert f"{result['bits_per_byte']:.4f}" in out
    assert out.endswith(f"written: {run / 'report.html'}\n")
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert "≤" not in out and report(capsys, run, "--target", "99")[1].count("≤ ") == len(AXES)


def test_json_is_evidence(capsys, folder, tmp_path):
    runs = [copy_of(folder, tmp_path / f"run-{seed}", seed=seed) for seed in (1, 2)]
    _, out, _ = report(capsys, *runs, "--format", "json")
    found, result = json.loads(out), json.loads((folder / "result.json").read_text())
    assert (found["devices"], found["versions"]) == ([result["device"]], [result["versions"]])
    assert found["command"].startswith("python -m yxanul.report ")
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(found["date"])) < timedelta(minutes=10)


def test_the_seconds_of_a_run_add_up(capsys, folder, tmp_path):
    run = copy_of(folder, tmp_path / "run")
    _, out, _ = report(capsys, run, "--format", "json")
    [[found]] = [choice["runs"] for choice in json.loads(out)["choices"]]
    rows = read_rows(run / "metrics.jsonl")
    seconds, reached = found["seconds"], found["reached"]
    evaluations = [row["evaluation_seconds"] for row in rows if row["kind"] == "eval"]
    last = rows[-1]["seconds"]
    assert seconds["evaluation"] == pytest.approx(sum(evaluations)) and len(evaluations) > 1
    assert seconds["training"] + sum(evaluations[:-1]) == pytest.approx(last)
    assert min(seconds[name] for name in ("preparation", "start_up", "training")) > 0
    assert reached["training_seconds"] <= seconds["training"]
    overhead = seconds["preparation"] + seconds["start_up"] + seconds["warm_up"]
    assert overhead < reached["total_seconds"] <= overhead + last
    assert reached["prepared_seconds"] == pytest.approx(overhead + reached["training_seconds"])
    plan = json.loads((run / "plan.json").read_text())
    assert reached["flops"] <= sum(stage["flops"] for stage in plan["stages"]) * 1.0001
    assert found["best_bits_per_byte"] == min(row["bits_per_byte"] for row in rows if row["kind"] == "eval")


@pytest.fixture
def sweep(folder, tmp_path) -> Path:
    """Two choices over three seeds: the second makes every run twice as fast, and learns the same."""
    path = tmp_path / "sweep"
    runs = {}
    for seed in (1, 2, 3):
        for choice, speed in (("slow", 1.0), ("fast", 2.0)):
            name = f"{choice}{seed}"
            copy_of(folder, path / name, seed, speed * (1 + 0.01 * seed), attention="auto" if speed == 1 else "sdpa")
            runs[name] = f"attention={choice} seed={seed}"
    (path / "sweep.json").write_text(json.dumps({"runs": runs}))
    return path


def test_a_choice_is_worth_what_it_is_worth(capsys, sweep):
    _, out, _ = report(capsys, sweep, "--format", "json")
    slow, fast = json.loads(out)["choices"]  # as the sweep has them, not as their folders sort
    assert (slow["choice"], fast["choice"]) == ("attention=slow", "attention=fast")
    assert [run["seed"] for run in fast["runs"]] == [1, 2, 3]
    factor = fast["factor"]
    assert factor["pairs"] == 3
    assert [factor[name]["ratio"] for name in ("total", "learning", "throughput")] == pytest.approx([2, 1, 2])
    assert slow["factor"] is None


@pytest.mark.parametrize(
    ("against", "expected", "starts"),
    [("first", [2, 6], [1, 1]), ("previous", [2, 3], [1, 2]), ("without", [1 / 2, 1 / 6], [1, 1])],
)
def test_choices_are_compared_as_asked(capsys, folder, tmp_path, against, expected, starts):
    runs = [
        copy_of(folder, tmp_path / name, speed=speed, cross_entropy=name)
        for name, speed in (("auto", 1), ("chunked", 2), ("liger", 6))
    ]
    _, out, _ = report(capsys, *runs, "--against", against, "--format", "json")
    factors = [choice["factor"] for choice in json.loads(out)["choices"][1:]]
    assert [factor["total"]["ratio"] for factor in factors] == pytest.approx(expected)
    assert factors[0]["total"]["low"] is None  # one seed tells nothing of the others
    assert [bar["start"] for bar in bars(runs[0] / "report.html")] == pytest.approx(starts)


def test_the_table_says_it_in_words(capsys, sweep):
    status, out, err = report(capsys, sweep, "--axis", "total_seconds")
    assert (status, err) == (0, "")
    line = next(line for line in out.splitlines() if line.startswith("attention=fast ") and "(" in line)
    assert line.split()[1:3] == ["3", "2"]


def test_the_whole_recipe_against_those_without_a_choice(capsys, sweep):
    """What the others leave out, here of the slow recipe, has made it slower."""
    _, out, _ = report(capsys, sweep, "--against", "without", "--format", "md")
    assert "| choice | seeds | what it leaves out: times as fast as without it | = by" in out
    assert "| attention=slow (the whole recipe) | 3 | 1 | 1 | 1 |" in out
    assert "| attention=fast | 3 | 0.5 (0.5 to 0.5) | 1 (1 to 1, not significant) | 0.5 (0.5 to 0.5) |" in out
    assert "the whole recipe" not in report(capsys, sweep, "--format", "md", "--output", sweep / "other.html")[1]
    page = (sweep / "report.html").read_text()
    assert "<h2>What it leaves out: times as fast as without it, in seconds of training</h2>" in page


def test_choices_in_folders_that_nobody_named_are_called_by_their_experiments(capsys, folder, tmp_path):
    """In all forms of the report, and its runs with them; runs without a whole record as their folders are."""
    made = "nano-fp32-superbpe8k-ultra-parquet"
    runs = [
        copy_of(folder, tmp_path / f"{made}-seed{seed}-0a1b2c{step}{seed}", seed, speed, **keys)
        for step, (speed, keys) in enumerate([(1, {}), (2, {"attention": "sdpa"}), (6, {"cross_entropy": "liger"})])
        for seed in (1, 2)
    ]
    for run in runs[2:4]:
        chosen(run, experiment="ladder/4_muon", optimizer="muon", tracking="minimal")
    shutil.rmtree(runs[4] / ".hydra")
    (runs[5] / ".hydra" / "hydra.yaml").write_text("hydra:\n  runtime:\n    choices:\n      experi")
    expected = ["experiment=quickstart", "experiment=ladder/4_muon", made]
    _, out, _ = report(capsys, *runs, "--against", "previous", "--format", "json")
    choices = json.loads(out)["choices"]
    assert [choice["choice"] for choice in choices] == expected
    assert [choice["factor"]["name"] for choice in choices[1:]] == expected[1:]
    assert [run["name"] for run in choices[1]["runs"]] == [f"{expected[1]} seed={seed}" for seed in (1, 2)]
    assert [bar["label"] for bar in bars(runs[0] / "report.html")] == expected[1:]
    _, out, _ = report(capsys, *runs, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["choice"] for row in rows] == [name for name in expected for _ in (1, 2)]
    assert [row["folder"] for row in rows] == [str(run) for run in runs]
    _, out, _ = report(capsys, *runs, "--format", "md")
    assert "\n| experiment=ladder/4_muon | 2 | 2 (2 to 2) |" in out
    assert "\nexperiment=ladder/4_muon  " in report(capsys, *runs)[1]


@pytest.fixture
def grid(folder, tmp_path) -> Path:
    """Two choices over two seeds: alone twice and three times as fast, both 24 times; they learn the same.

    The second is worth a tenth more with one seed, and less with the other.
    """
    path = tmp_path / "grid"
    runs = {}
    for seed in (1, 2):
        for (attention, one), (loss, other) in product((("auto", 1), ("sdpa", 2)), (("auto", 1), ("liger", 3))):
            speed = (24 if one * other == 6 else one * other) * (1.1 ** (3 - 2 * seed) if other > 1 else 1)
            name = f"{attention}-{loss}-{seed}"
            copy_of(folder, path / name, seed, speed, attention=attention, cross_entropy=loss)
            runs[name] = f"attention={attention} loss={loss} seed={seed}"
    (path / "sweep.json").write_text(json.dumps({"runs": runs}))
    return path


def test_the_shares_of_the_choices_of_a_grid(capsys, grid):
    """Each is worth the average of what it is worth first and what it is worth last."""
    _, out, _ = report(capsys, grid, "--shapley", "--format", "json")
    shares = json.loads(out)["shapley"]
    names = ["attention=sdpa", "loss=liger", "all of them"]
    ratios = [(2 * 8) ** 0.5, (3 * 12) ** 0.5, 24]
    found = [*shares["factors"], shares["whole"]]
    assert [each["name"] for each in found] == names
    assert [each["total"]["ratio"] for each in found] == pytest.approx(ratios)
    assert [each["learning"]["ratio"] for each in found] == pytest.approx([1, 1, 1])
    _, out, _ = report(capsys, grid, "--shapley", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["choice"], row["seeds"]) for row in rows] == [(name, "2") for name in names]
    for row, each in zip(rows, found, strict=True):
        for part, (end, value) in product(("total", "learning", "throughput"), (("", "ratio"), ("_low", "low"))):
            assert float(row[f"{part}{end}"]) == each[part][value]
    assert float(rows[1]["total_low"]) < ratios[1] - 1 < ratios[1] + 1 < float(rows[1]["total_high"])
    _, out, _ = report(capsys, grid, "--shapley", "--format", "md")
    assert "| attention=sdpa | 2 | 4 (4 to 4) | 1 (1 to 1, not significant) | 4 (4 to 4) |" in out
    assert "| loss=liger | 2 | 6 (" in out and "| all of them | 2 | 24 (" in out
    page = (grid / "report.html").read_text()
    assert page.count("Shapley&#x27;s shares: times as fast, on average over all orders of adding the choices") == 3
    drawn = bars(grid / "report.html")
    assert [bar["label"] for bar in drawn] == names
    assert [bar["start"] for bar in drawn] == pytest.approx([1, 4, 1])


def test_a_grid_that_lacks_a_recipe_is_one_line(capsys, grid):
    folders = [path for path in sorted(grid.iterdir()) if path.is_dir() and "sdpa-liger" not in path.name]
    status, out, err = report(capsys, *folders, "--shapley")
    assert (status, out) == (1, "") and err == (
        "error: the grid of combinations has no cost of attention=sdpa + cross_entropy=liger: "
        "run it, or leave out a choice\n"
    )


def test_forms_for_papers_and_scripts(capsys, sweep, tmp_path):
    page = tmp_path / "page.html"
    _, out, _ = report(capsys, sweep, "--format", "csv", "--output", page)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 6 and {row["choice"] for row in rows} == {"attention=fast", "attention=slow"}
    assert all(float(row["bytes"]) > 0 and row["finished"] == "True" for row in rows)
    assert page.exists() and not (sweep / "report.html").exists()
    _, out, _ = report(capsys, sweep, "--format", "md", "--output", page)
    lines = out.splitlines()
    assert "| run | best |" in out and sum(line.startswith("| attention=") for line in lines) == 6 + 6 + 2


def test_runs_that_never_arrive_and_runs_that_are_not_finished(capsys, folder, tmp_path):
    whole = copy_of(folder, tmp_path / "whole")
    part = copy_of(folder, tmp_path / "part", seed=2)
    (part / "result.json").unlink()
    rows = read_rows(part / "metrics.jsonl")
    first = next(index for index, row in enumerate(rows) if row["kind"] == "eval")
    (part / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[: first + 1]) + '{"kind": "tr')
    target = json.loads((whole / "result.json").read_text())["bits_per_byte"]
    status, out, err = report(capsys, whole, part, "--target", target)
    assert (status, err) == (0, "")
    line = next(line for line in out.splitlines() if line.startswith("part "))
    assert line.startswith("part (not finished) ") and line.count("never") == len(AXES)
    assert "1 of 2 arrive" in out or "What each choice" not in out


def test_runs_judged_on_other_text_are_told(capsys, folder, tmp_path):
    one = copy_of(folder, tmp_path / "one")
    other = copy_of(folder, tmp_path / "other", seed=2)
    text = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(text.replace('"held_out": "text ', '"held_out": "other '))
    _, out, _ = report(capsys, one, other)
    assert "judged on another held-out text or context than one" in out


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path / "nowhere", "nowhere: no such folder; name folders of runs or of sweeps"),
        (lambda path: path, "holds no run that has begun to train; name folders of runs or of sweeps"),
    ],
)
def test_what_is_no_run_is_one_line(capsys, tmp_path, make, expected):
    status, out, err = report(capsys, make(tmp_path))
    assert (status, out) == (1, "") and err.startswith("error: ") and err.endswith(f"{expected}\n")


def test_a_damaged_run_is_one_line(capsys, folder, tmp_path):
    run = copy_of(folder, tmp_path / "run")
    (run / "plan.json").write_text("{")
    status, out, err = report(capsys, run)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {run / 'plan.json'}: is damaged (") and err.count("\n") == 1
