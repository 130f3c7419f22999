"""Tasks of lm-evaluation-harness, from the command line to the table."""

import json
import math
import sys
from functools import partial

import pytest
import yaml

from yxanul import evaluate

from .naive import TEXT, reference

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'yxanul[eval]'")

from yxanul.inference import harness

QUESTIONS = [
    ("The parser reads the", ["command line", "book", "default value"], 0),
    ("Arguments are", ["positional", " optional", "eaten"], 2),
    ("raise", [" ValueError", " TypeError"], 1),
    ("An action", [" of the parser", " in a play"], 0),
]
DOCUMENTS = ["\n".join(TEXT.split("\n")[start : start + 2]) for start in (10, 60, 90)]


@pytest.fixture
def tasks(tmp_path):
    """A folder of tasks on data that lies beside them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = {
        "mine_choice": [{"query": text, "choices": choices, "gold": gold} for text, choices, gold in QUESTIONS],
        "mine_shots": [{"query": text, "answer": choices[gold]} for text, choices, gold in QUESTIONS],
        "mine_text": [{"text": text} for text in DOCUMENTS],
        "mine_written": [{"query": "def add", "answer": "x"}, {"query": "import", "answer": "y"}],
    }
    asked = {
        "mine_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "target_delimiter": " ",
            "metric_list": [{"metric": "acc"}],
        },
        "mine_shots": {
            "output_type": "loglikelihood",
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{answer}}",
            "fewshot_split": "train",
            "num_fewshot": 1,
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        "mine_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "mine_written": {
            "output_type": "generate_until",
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, rows in data.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"data_files": str(file), "cache_dir": str(tmp_path / "datasets")}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": source, "test_split": "train", **asked[name]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture
def judged(capfd, monkeypatch):
    """Runs the command: exit status, what was printed, and what was complained of."""
    monkeypatch.setenv("COLUMNS", "160")

    def command(*arguments):
        capfd.readouterr()
        status = evaluate.main([*map(str, arguments), "--device", "cpu"])
        return status, *capfd.readouterr()

    return command


def test_tasks_of_ones_own_need_no_network(judged, run, tasks, model, tokenizer, tmp_path):
    status, out, err = judged(run, "--tasks", "mine_choice,mine_text", "--task-path", tasks, "--format", "json")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert {row["model"] for row in rows} == {"a_run"}
    found = {(row["task"], row["metric"]): row for row in rows}
    assert found.keys() == {("mine_choice", "acc"), ("mine_text", "bits_per_byte")}

    right = []
    for text, choices, gold in QUESTIONS:
        chances = list(reference(model, tokenizer, text, [f" {choice}" for choice in choices]))
        right.append(max(range(len(choices)), key=chances.__getitem__) == gold)
    assert 0 < sum(right) < len(right)
    accuracy = found["mine_choice", "acc"]
    share = sum(right) / len(right)
    assert accuracy["value"] == share
    assert accuracy["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / (len(right) - 1)))

    texts = tmp_path / "texts.txt"
    texts.write_text("\n<|endoftext|>\n".join(DOCUMENTS))
    status, out, _ = judged(run, "--data", texts, "--format", "json")
    assert status == 0
    [ours] = json.loads(out)
    assert found["mine_text", "bits_per_byte"]["value"] == pytest.approx(ours["bits_per_byte"], rel=1e-5)
    assert found["mine_text", "bits_per_byte"]["stderr"] is None


def test_models_stand_beside_one_another(judged, run, stock, tasks):
    """Two that are the same model get the same values, also where examples are drawn into the prompt."""
    status, out, err = judged(run, stock, "--tasks", "mine_*", "--task-path", tasks)
    assert (status, err) == (0, "")
    header, *rows = (line.split() for line in out.strip().splitlines())
    assert header == ["task", "metric", "a_run", "stderr", "a_folder", "stderr"]
    assert {(task, metric) for task, metric, *_ in rows} == {
        ("mine_choice", "acc"),
        ("mine_shots", "perplexity"),
        ("mine_shots", "acc"),
        ("mine_text", "bits_per_byte"),
        ("mine_written", "exact_match"),
    }
    for task, _, *cells in rows:
        values = [float(cell) for cell in cells]
        half = len(values) // 2
        assert half == (1 if task == "mine_text" else 2) and values[:half] == pytest.approx(values[half:], rel=1e-2)


def test_a_limit_takes_the_first_examples(judged, run, tasks):
    def value(*limit):
        _, out, err = judged(run, "--tasks", "mine_text", "--task-path", tasks, "--format", "json", *limit)
        assert err == ""
        return json.loads(out)[0]["value"]

    limited, whole = value("--limit", 1), value()
    data = tasks.parent / "mine_text.jsonl"
    data.write_text(data.read_text().splitlines()[0])
    assert limited == value() != whole


def the_line(outcome):
    status, out, err = outcome
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_without_the_harness_it_is_one_line(judged, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "yxanul.inference.harness")
    assert "yxanul[eval]" in the_line(judged(run, "--tasks", "arc_easy"))


def test_an_unknown_task_is_one_line(judged, run, tasks, monkeypatch):
    none = partial(harness.TaskManager, include_defaults=False)  # reading the harness's own takes ten seconds
    monkeypatch.setattr(harness, "TaskManager", lambda include_path, include_defaults=True: none(None, include_path))
    line = the_line(judged(run, "--tasks", "mine_text,mine_chioce", "--task-path", tasks))
    assert "--tasks mine_chioce: no such task; did you mean mine_choice" in line


@pytest.mark.slow
def test_the_harness_brings_tasks_of_its_own(judged, run):
    assert "--tasks arc_eazy: no such task; did you mean arc_easy" in the_line(judged(run, "--tasks", "arc_eazy"))


def test_data_that_cannot_be_had_is_one_line(judged, run, tasks, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    task = yaml.safe_load((tasks / "mine_text.yaml").read_text())
    far = {**task, "task": "far", "dataset_path": "nobody/nothing_of_the_kind", "dataset_kwargs": {}}
    (tasks / "far.yaml").write_text(yaml.safe_dump(far))
    assert "which takes a network" in the_line(judged(run, "--tasks", "far", "--task-path", tasks))
    (tasks.parent / "mine_text.jsonl").unlink()
    assert "--tasks mine_text: cannot be loaded" in the_line(judged(run, "--tasks", "mine_text", "--task-path", tasks))


def test_other_bad_input_is_one_line(judged, run, tasks):
    assert "no such folder" in the_line(judged(run, "--tasks", "x", "--task-path", tasks / "nothing"))
    assert "--tasks must name some" in the_line(judged(run, "--task-path", tasks))
    assert "--limit 2: is of tasks" in the_line(judged(run, "--limit", "2"))
    assert "--limit 0: must be at least 1" in the_line(judged(run, "--tasks", "mine_text", "--limit", "0"))
    assert "--by: is about text" in the_line(judged(run, "--tasks", "mine_text", "--by", "source"))
    assert "is no run" in the_line(judged(tasks, "--tasks", "mine_text", "--task-path", tasks))
