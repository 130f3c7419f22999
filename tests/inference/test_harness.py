"""Models asked by lm-evaluation-harness: what is scored, what is greedy, what is written, and tasks from end to end."""

import argparse
import json
import math
import shutil
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file

from yxanul import evaluate
from yxanul.composition import to_plain
from yxanul.config import TokenizerConfig, TokenizerKind
from yxanul.errors import UserError
from yxanul.inference.generate import Limits, generate
from yxanul.inference.prompt import Vocabulary, take_back
from yxanul.inference.stock import to_stock
from yxanul.model.attention import sdpa
from yxanul.model.sampling import Sampling
from yxanul.model.transformer import Packed
from yxanul.tokenizer.load import load_tokenizer
from yxanul.training.checkpoint import Saver, TrainState
from yxanul.training.distributed import ALONE

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'yxanul[eval]'")

from yxanul.inference import harness

CPU = torch.device("cpu")
TEXT = Path(argparse.__file__).read_text(encoding="utf-8")
CONTEXT = 48


@pytest.fixture(scope="module")
def tokenizer(cache):
    """With superwords: "the default" and "in the" are tokens."""
    config = TokenizerConfig(
        kind=TokenizerKind.superbpe,
        path=None,
        repo=None,
        revision=None,
        vocab_size=896,  # a multiple of 128: no entry of the model is padding
        transition=600,
        train_bytes=200_000,
        end_of_text="<|endoftext|>",
        bytes_per_token=2.0,
    )
    return load_tokenizer(config, cache, lambda: [TEXT], "argparse")


@pytest.fixture(scope="module")
def model(model_config, build_model, tokenizer):
    return build_model(model_config(max_seq_len=CONTEXT), tokenizer.vocab_size)


@pytest.fixture(scope="module")
def config(compose, model_config, tokenizer):
    sizes = f"tokenizer.vocab_size={tokenizer.vocab_size}", "tokenizer.transition=600", "curriculum.max_seq_len=16"
    base = compose("precision=fp32", "tokenizer=superbpe8k", *sizes)
    return replace(base, model=model_config(max_seq_len=CONTEXT))


@pytest.fixture(scope="module")
def run(config, model, tokenizer, tmp_path_factory):
    """A run's folder with that model in it."""
    folder = tmp_path_factory.mktemp("runs") / "a_run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    shutil.copyfile(tokenizer.path, folder / "tokenizer.json")
    saver = Saver(folder / "checkpoints", 1, ALONE)
    saver.save(TrainState(tokenizer=tokenizer.fingerprint), model, [])
    saver.wait()
    saver.close()
    return folder


@pytest.fixture(scope="module")
def stock(config, model, tokenizer, tmp_path_factory):
    """The same model as a Hugging Face folder."""
    pytest.importorskip("transformers", reason="needs transformers: pip install 'yxanul[export]'")
    folder = tmp_path_factory.mktemp("folders") / "a_folder"
    folder.mkdir()
    exported = to_stock(config, model, tokenizer.end_of_text)
    (folder / "config.json").write_text(json.dumps(exported.config))
    save_file(exported.tensors, folder / "model.safetensors", {"format": "pt"})
    shutil.copyfile(tokenizer.path, folder / "tokenizer.json")
    return folder


@pytest.fixture
def subject_of(tokenizer):
    """What answers the harness: `subject_of(model)`."""

    def make(model, context=CONTEXT, write=None):
        return harness.Subject(model, tokenizer, context, write, CPU, Console(quiet=True))

    return make


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def ends(tokenizer, text):
    """The bytes after which a token of a text ends."""
    found = [0]
    for token in tokenizer.encode([text])[0]:
        found.append(found[-1] + len(tokenizer.token_bytes[token]))
    return found


def scored_ids(tokenizer, context, continuations):
    """Of each continuation all ids and where those begin that are to be scored, found by trying every place."""
    ending = [ends(tokenizer, context + each) for each in continuations]
    places = range(len(context.encode()) + 1)
    cut = max(place for place in places if all(place in each for each in ending))
    for each, boundaries in zip(continuations, ending, strict=True):
        yield [tokenizer.end_of_text, *tokenizer.encode([context + each])[0]], 1 + boundaries.index(cut)


def reference(model, tokenizer, context, continuations):
    """The log-likelihood of each continuation, each token predicted from the text before it alone."""
    for ids, first in scored_ids(tokenizer, context, continuations):
        ids, first = ids[-CONTEXT - 1 :], first - max(0, len(ids) - CONTEXT - 1)
        whole = torch.tensor(ids[:-1])
        packed = Packed(whole, torch.arange(len(whole)), sdpa([0], len(whole), len(whole)))
        chances = model.next_token_logits(packed, torch.arange(len(whole))).log_softmax(1)
        yield sum(chances[place - 1, ids[place]].item() for place in range(first, len(ids)))


# what is scored

WORDS = st.lists(st.sampled_from(["the", " the", " default", " in", " value", " of", " an", "s", "\n", " é", "(", " "]))


@given(WORDS.map("".join), st.lists(WORDS.map("".join), min_size=1, max_size=3))
def test_all_of_a_continuation_is_scored_and_the_same_end_of_its_context(tokenizer, context, continuations):
    asked = harness.questions([(context, each) for each in continuations], tokenizer)
    for found, (ids, first), text in zip(
        asked, scored_ids(tokenizer, context, continuations), continuations, strict=True
    ):
        assert found.ids == ids and len(found.to_spell) == len(ids) - first
        scored = b"".join(tokenizer.token_bytes[token] for token in ids[first:])
        assert scored.endswith(text.encode())
        unsaid = scored.removesuffix(text.encode())
        for token, left in zip(ids[first:], found.to_spell, strict=True):
            assert left == unsaid
            unsaid = unsaid[len(tokenizer.token_bytes[token]) :]


def a_spanned_context(tokenizer):
    """A context, two continuations, and the id of a token that begins in the context and ends in the first of them."""
    for index, token in enumerate(tokenizer.token_bytes):
        words = token.decode(errors="replace").split(" ")
        if token.startswith(b" ") and len(words) == 3:
            context, continuation = f"def add {words[1]}", f" {words[2]}"
            if index in tokenizer.encode([context + continuation])[0]:
                return context, [continuation, "(self)"], index
    raise AssertionError("no superword")


def test_a_superword_that_spans_the_end_of_the_context_takes_its_end_with_it(tokenizer):
    context, continuations, superword = a_spanned_context(tokenizer)
    spanned, other = harness.questions([(context, each) for each in continuations], tokenizer)
    assert spanned.ids[-len(spanned.to_spell)] == superword
    end = tokenizer.token_bytes[superword].removesuffix(continuations[0].encode())
    assert spanned.to_spell[0] == other.to_spell[0] == end
    [alone] = harness.questions([(context, "(self)")], tokenizer)
    assert alone.to_spell[0] == b"" and len(alone.to_spell) < len(other.to_spell)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 20))
def test_windows_score_each_token_once(before, number, context):
    ids = list(range(before + number))
    scored = []
    for window, skipped in harness.Question(ids, [b""] * number).windows(context):
        assert 1 < len(window) <= context + 1 and all(later == earlier + 1 for earlier, later in pairwise(window))
        assert window[0] == 0 or len(window) == context + 1  # as much text before as fits
        scored += window[1 + skipped :]
    assert scored == ids[before:]


def test_likelihoods_are_those_of_each_text_read_alone(subject_of, model, tokenizer):
    context, continuations, _ = a_spanned_context(tokenizer)
    cases = [
        (context, continuations),
        ("", ["the default", "x"]),
        ("def parse_args(", ["self", "self, args=None"]),
        (TEXT[:1000], [" the default", "\n"]),  # does not fit
        ("Options: ", ["yes", " no", ""]),
    ]
    pairs = [(text, each) for text, endings in cases for each in endings]
    found = subject_of(model).loglikelihood(requests(*pairs))
    expected = [each for text, endings in cases for each in reference(model, tokenizer, text, endings)]
    assert [likelihood for likelihood, _ in found] == pytest.approx(expected, abs=1e-3)
    backwards = subject_of(model).loglikelihood(requests(*reversed(pairs)))
    assert [likelihood for likelihood, _ in reversed(backwards)] == pytest.approx(expected, abs=1e-3)


class Bigrams:
    """A model whose likeliest tokens are known: `following` says which after which; all others are told by chance."""

    def __init__(self, vocab_size, following):
        self.table = torch.rand(vocab_size, vocab_size, generator=torch.Generator().manual_seed(0))
        for before, after in following.items():
            self.table[before, after] = 2.0

    def next_token_logits(self, packed, rows):
        return self.table[packed.tokens[rows]]


def test_greedy_is_what_the_likeliest_tokens_say(subject_of, tokenizer):
    context, continuation = "def add_argument(", "self, *args)"
    ids = [tokenizer.end_of_text, *tokenizer.encode([context + continuation])[0]]
    assert len(set(ids)) == len(ids)
    likeliest = dict(pairwise(ids))
    known = subject_of(Bigrams(tokenizer.vocab_size, likeliest))
    assert [greedy for _, greedy in known.loglikelihood(requests((context, continuation), (context, "x")))] == [1, 0]
    before_last = subject_of(Bigrams(tokenizer.vocab_size, {**likeliest, ids[-2]: ids[0]}))
    assert not before_last.loglikelihood(requests((context, continuation)))[0][1]


def test_greedy_tokens_go_on_with_the_end_of_the_context(subject_of, tokenizer):
    """The likeliest token of all does not spell the end of the context; of those that do it is the superword."""
    context, [continuation, _], superword = a_spanned_context(tokenizer)
    ids = tokenizer.encode([context + continuation])[0]
    before = ids[ids.index(superword) - 1]
    model = Bigrams(tokenizer.vocab_size, {before: superword})
    [unrelated] = tokenizer.encode(["("])[0]
    model.table[before, unrelated] = 3.0
    assert subject_of(model).loglikelihood(requests((context, continuation)))[0][1]
    shorter = tokenizer.token_bytes.index(b" ")
    model.table[before, shorter] = 3.0
    assert not subject_of(model).loglikelihood(requests((context, continuation)))[0][1]


def test_a_text_is_scored_whole(subject_of, model, tokenizer):
    texts = [TEXT[:60], "é" * 20, "x"]
    found = subject_of(model).loglikelihood_rolling(requests(*[(text,) for text in texts]))
    expected = [next(reference(model, tokenizer, "", [text])) for text in texts]
    assert found == pytest.approx(expected, abs=1e-3)


# what is written


def test_text_is_what_generate_writes(run, config, model, tokenizer):
    subject = harness.open_subject(run, CPU, Console(quiet=True))
    prompts = ["def add_argument(self", "import "]
    found = subject.generate_until(requests(*[(prompt, {"until": [], "max_gen_toks": 12}) for prompt in prompts]))
    for prompt, text in zip(prompts, found, strict=True):
        [alone] = generate(model, config.model, tokenizer, prompt, 1, Limits(12), Sampling(temperature=0))
        assert text == alone.text and text
    stop = found[0][3:5]
    [stopped] = subject.generate_until(requests((prompts[0], {"until": [stop, ""], "max_gen_toks": 12})))
    assert stopped == found[0][: found[0].index(stop)]


def test_a_context_that_leaves_no_room_is_cut_from_the_left(subject_of, model, tokenizer):
    heard = []
    subject = subject_of(model, write=lambda prompt, limits, sampling, seed: heard.append((prompt, limits)) or "")
    subject.generate_until(requests(*[(TEXT[:1000], {"max_gen_toks": number}) for number in (8, 1000)], ("short", {})))
    for (prompt, limits), number, room in zip(heard, (8, 1000), (CONTEXT - 1 - 8, CONTEXT // 2), strict=False):
        assert limits.new_tokens == number and TEXT[:1000].endswith(prompt)
        assert room / 2 < len(tokenizer.encode([prompt])[0]) <= room
    assert heard[2][0] == "short"


def test_sampling_is_what_the_task_asks_for(subject_of, model):
    heard = []
    subject = subject_of(model, write=lambda prompt, limits, sampling, seed: heard.append((sampling, seed)) or "")
    asked = ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, {"do_sample": False, "temperature": 0.7})
    subject.generate_until(requests(*[("a", each) for each in asked]))
    assert heard == [(Sampling(0.7, None, 0.9), 0), (Sampling(0.0, None), 1)]
    with pytest.raises(UserError, match="num_beams"):
        subject.generate_until(requests(("a", {"num_beams": 4})))


def test_a_folder_answers_as_the_run_that_it_was(run, stock, tokenizer):
    ours, theirs = (harness.open_subject(folder, CPU, Console(quiet=True)) for folder in (run, stock))
    vocabulary = Vocabulary(tokenizer.token_bytes)
    kept = [line for line in TEXT.split("\n") if line and not take_back(tokenizer.encode([line])[0], vocabulary)[1]]
    prompts = requests(*[(line, {"max_gen_toks": 8}) for line in kept[:8]], (TEXT[:1000], {"max_gen_toks": 8}))
    texts = [[text.rstrip("\ufffd") for text in subject.generate_until(prompts)] for subject in (ours, theirs)]
    assert texts[0][:-1] == texts[1][:-1] and texts[1][-1]  # the end of a prompt that is cut is read otherwise
    longest = max(texts[0][:-1], key=len)
    stopped = requests((kept[texts[0].index(longest)], {"max_gen_toks": 8, "until": longest[2:4]}))
    assert theirs.generate_until(stopped) == ours.generate_until(stopped) == [longest[: longest.index(longest[2:4])]]

    pairs = requests(("def parse_args(", "self"), (TEXT[:1000], " default"))
    for one, other in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert other == pytest.approx(one, abs=1e-3)


# tasks, from the command line


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
