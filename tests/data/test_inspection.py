"""What inspect_data says: against plain counting, and against what the trainer reads."""

import io
import json
import re
import statistics
import sys
from collections import Counter
from dataclasses import replace

import hydra
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from yxanul import cli, curriculum
from yxanul.composition import parse, register
from yxanul.config import InspectConfig
from yxanul.data import inspection, preparation
from yxanul.data.documents import Part, unit_hash
from yxanul.data.inspection import inspect, measure_lengths, plan_stages
from yxanul.data.stream import Stream
from yxanul.errors import ConfigError, UserError
from yxanul.inspect_data import inspect_data
from yxanul.reporting.data_table import corpus_overview, inspection_tables, visible

HELD_OUT = 0.2
TEXTS = [
    [f"document {n} {'words and ' * (n * n % 50)}" for n in range(40)] + ["the same", "the same", "twice"],
    [],
    ["🇩🇪 naïve – " * 20, "[bold]no markup[/bold]", "escape \x1b[31m\x00\r", "the same", "twice", "a\tb\n\n  c"],
]
STAGES = (
    "curriculum.stages=[{seq_len:4,step_tokens:64,share:0.1,lr_scale:1,grad_clip:1},"
    "{seq_len:10,step_tokens:100,share:0.000001,lr_scale:1,grad_clip:1},"
    "{seq_len:32,step_tokens:96,share:0.899999,lr_scale:1,grad_clip:1}]"
)


@pytest.fixture(scope="module")
def inspect_config():
    """Composes an `InspectConfig` as the command line does."""

    def composed(*overrides: str) -> InspectConfig:
        register()
        with hydra.initialize_config_dir(str(cli.config_dir()), version_base="1.3"):
            base = ["experiment=quickstart", "hardware=cpu", STAGES, "curriculum.max_step_tokens=null"]
            return parse(hydra.compose("inspect_data", overrides=[*base, *overrides]), InspectConfig)

    return composed


@pytest.fixture(scope="module")
def config(inspect_config):
    return inspect_config("train.tokens=9000", "sequences=20", "stage=3")


@pytest.fixture(scope="module")
def corpus(config, small_tokenizer, tmp_path_factory):
    data = replace(config.data, held_out=HELD_OUT, cache=str(tmp_path_factory.mktemp("inspection")))
    parts = [Part(f"part {n}", f"f{n}", lambda texts=texts: texts) for n, texts in enumerate(TEXTS)]
    return preparation.prepare(parts, small_tokenizer, data, 4.0, Console(quiet=True))


@pytest.fixture(scope="module")
def found(config, corpus, small_tokenizer):
    return inspect(corpus, small_tokenizer, config, plan_stages(config))


@pytest.fixture(scope="module")
def documents(small_tokenizer) -> list[tuple[str, int]]:
    """The training documents with their lengths in tokens."""
    texts = [text for of_part in TEXTS for text in of_part if unit_hash(text) >= HELD_OUT]
    return [(text, 1 + len(ids)) for text, ids in zip(texts, small_tokenizer.encode(texts), strict=True)]


@given(
    lengths=st.lists(
        st.integers(1, 5000) | st.sampled_from([2**n + d for n in range(1, 40) for d in (-1, 0)]), min_size=1
    )
)
def test_lengths(lengths):
    measured = measure_lengths(np.array(lengths))
    assert (measured.median, measured.longest) == (statistics.median(lengths), max(lengths))
    assert measured.mean == pytest.approx(statistics.mean(lengths))
    assert [each.begin for each in measured.bins] == [
        2**n for n in range(min(lengths).bit_length() - 1, max(lengths).bit_length())
    ]
    for each in measured.bins:
        inside = [length for length in lengths if each.begin <= length < 2 * each.begin]
        assert (each.documents, each.tokens) == (len(inside), sum(inside))


def test_lengths_are_those_of_the_training_documents(found, documents):
    assert found.lengths == measure_lengths(np.array([length for _, length in documents]))
    assert (found.documents, found.tokens) == (len(documents), sum(length for _, length in documents))


def test_duplicates(found, documents):
    seen, repeated = set(), []
    for text, length in documents:
        if text in seen:
            repeated.append(length)
        seen.add(text)
    [(text, times), _] = Counter(text for text, _ in documents).most_common(2)
    assert repeated
    assert (found.duplicates.documents, found.duplicates.tokens) == (len(repeated), sum(repeated))
    assert (found.duplicates.times, found.duplicates.beginning) == (times, text)


@pytest.mark.parametrize("text", ["ä🇩🇪👍🏽" * 30, "short\n", "x" * 61])
def test_the_beginning_is_of_characters_not_tokens(config, small_tokenizer, make_corpus, tmp_path, text):
    corpus = make_corpus(["before", text, "between", text], small_tokenizer, 1e-9, tmp_path)
    assert inspect(corpus, small_tokenizer, config, plan_stages(config)).duplicates.beginning == text[:60]


def test_stages(config, found, corpus, documents, small_tokenizer):
    """Every sequence that the trainer reads, looked at one by one."""
    stream = Stream(corpus, config.seed, small_tokenizer.byte_lengths)
    steps = curriculum.plan(config.curriculum, config.train, config.schedule, 1.0, lambda seq_len: 1)
    total = sum(length for _, length in documents)
    for index, (stage, reading) in enumerate(zip(config.curriculum.stages, found.stages, strict=True)):
        mine = [step for step in steps if step.stage == index]
        crossing = sequences = 0
        for step in mine:
            for sequence in range(len(step.micro_batches)):
                tokens = stream.micro_batch(step, sequence).tokens.tolist()
                crossing += small_tokenizer.end_of_text in tokens[1:]
                sequences += 1
        longer = [length for _, length in documents if length > stage.seq_len]
        assert (reading.stage, reading.seq_len, reading.steps) == (index + 1, stage.seq_len, len(mine))
        assert (reading.sequences, reading.tokens) == (sequences, sequences * stage.seq_len)
        assert reading.longer == pytest.approx(len(longer) / len(documents))
        assert reading.longer_tokens == pytest.approx(sum(longer) / total)
        assert reading.crossing == (pytest.approx(crossing / sequences) if mine else None)
    assert found.stages[1].steps == 0 and found.stages[2].tokens > total
    assert all(0 < stage.crossing < 1 for stage in (found.stages[0], found.stages[2]))


def test_crossing_reads_the_beginning_of_a_stage_only(config, corpus, small_tokenizer, monkeypatch):
    monkeypatch.setattr(inspection, "SAMPLE_TOKENS", 5 * 96)
    read = []
    real = Stream.micro_batch
    monkeypatch.setattr(Stream, "micro_batch", lambda self, *place: read.append(place) or real(self, *place))
    inspect(corpus, small_tokenizer, replace(config, sequences=0), plan_stages(config))
    assert Counter(step.stage for step, _ in read) == {0: 8, 2: 5}


def test_sequences_are_those_that_the_trainer_reads(config, found, corpus, small_tokenizer):
    stream = Stream(corpus, config.seed, small_tokenizer.byte_lengths)
    steps = curriculum.plan(config.curriculum, config.train, config.schedule, 1.0, lambda seq_len: 2)
    steps = [step for step in steps if step.stage == config.stage - 1]
    batches = [stream.micro_batch(step, index) for step in steps for index in range(2)]
    rows = np.concatenate([batch.tokens.reshape(-1, batch.seq_len) for batch in batches])
    assert found.first_step == steps[0].index + 1 and found.shown == found.stages[2]
    assert len(found.sequences) == config.sequences > len(batches[0].tokens) // 32 * 2  # reaches over several steps
    for row, sequence in zip(rows, found.sequences, strict=False):
        assert sequence.tokens.tolist() == row.tolist()
        begins = np.flatnonzero(row == small_tokenizer.end_of_text).tolist()
        assert sequence.starts.tolist() == sorted({0, *begins})
    assert any(len(sequence.starts) > 1 for sequence in found.sequences)


def test_a_small_stage_has_only_its_own_sequences(config, corpus, small_tokenizer):
    config = replace(config, stage=1, sequences=10**6)
    found = inspect(corpus, small_tokenizer, config, plan_stages(config))
    assert len(found.sequences) == found.shown.sequences == found.stages[0].sequences


def test_a_stage_without_a_step_shows_nothing_and_says_so(config, corpus, small_tokenizer):
    found = inspect(corpus, small_tokenizer, replace(config, stage=2), plan_stages(config))
    assert (found.sequences, found.first_step) == ([], None)
    assert "stage 2 gets no step at this budget" in rendered(found, small_tokenizer)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stage=0"], "stage=0: the curriculum has 3 stages"),
        (["stage=4"], "stage=4: the curriculum has 3 stages"),
        (["sequences=-1"], "sequences=-1"),
        (["train.tokens=10"], "less than one optimizer step"),
    ],
)
def test_what_cannot_be_shown(inspect_config, overrides, said):
    with pytest.raises(UserError, match=said) as caught:
        plan_stages(inspect_config("train.tokens=9000", *overrides))
    assert isinstance(caught.value, ConfigError) or overrides == ["train.tokens=10"]


# As people see it


def rendered(found, tokenizer, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(inspection_tables(found, tokenizer))
    return console.export_text()


@given(text=st.text())
def test_visible_text_prints_in_one_line(text):
    shown = visible(text)
    assert shown.isprintable() or not text
    assert not set(shown) & set(" \n\t\r\x1b")


def test_text_is_shown_and_not_interpreted(config, small_tokenizer, make_corpus, tmp_path):
    """Neither rich's markup nor a terminal's escapes, and every token boundary is marked."""
    text = "[bold]x[/bold]\x1b\x00"
    corpus = make_corpus([text], small_tokenizer, 1e-9, tmp_path)
    found = inspect(corpus, small_tokenizer, replace(config, stage=1, sequences=9), plan_stages(config))
    lines = re.findall(r"^\d (▶.*?) *$", rendered(found, small_tokenizer), flags=re.MULTILINE)
    shown = [re.split("[▶│]", line)[1:] for line in lines]
    assert [len(pieces) for pieces in shown] == [4] * 9
    assert "".join("".join(pieces) for pieces in shown).startswith(r"[<|endoftext|>][bold]x[/bold]\x1b\x00[<|end")


def test_nothing_held_out_is_told(config, small_tokenizer, make_corpus, tmp_path):
    corpus = make_corpus(["all of it is trained on"], small_tokenizer, 1e-9, tmp_path)
    assert "0 documents of 0 bytes; a run needs one" in corpus_overview(config.data, small_tokenizer, corpus)


@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_the_terminal(config, found, small_tokenizer, width):
    big = replace(found.stages[0], tokens=2_610_000_000, sequences=326_250_000, steps=100_000)
    lines = rendered(
        replace(found, tokens=big.tokens, stages=[big, *found.stages]), small_tokenizer, width
    ).splitlines()
    assert all(len(line) <= width for line in lines)
    assert not any("…" in line for line in lines)


@pytest.fixture
def command(small_tokenizer, tmp_path, monkeypatch, capfd):
    """Runs the command in this process, in a folder of its own, on a small file; exit status, stdout, stderr."""
    rows = [f"text number {n} " + "of some words " * (n % 30) for n in range(60)]
    rows[7:7] = [rows[3], None, rows[3], "it ends"]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("COLUMNS", "300")
    overrides = [
        "experiment=quickstart",
        "data=parquet",
        f"data.path={tmp_path / 'text'}",
        f"data.cache={tmp_path / 'cache'}",
        "tokenizer.vocab_size=512",
        "tokenizer.transition=500",
        f"tokenizer.path={small_tokenizer.path}",
        "data.on_error=skip",
        "hardware=h100",
    ]

    def run(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["yxanul.inspect_data", *overrides, *more])
        return cli.run(inspect_data, "inspect_data", InspectConfig), *capfd.readouterr()

    run.overrides = overrides
    return run


def test_the_command_says_what_a_run_would_read(command, compose, small_tokenizer, tmp_path):
    status, out, err = command("stage=3", "sequences=5")
    assert status == 0 and "Traceback" not in err
    for fact in (
        "1 file at",
        "1 rows gave no document",
        "rows.jsonl, row 9: is null",
        "2 of ",
        "the most frequent text occurs 3 times",
        "text·number·3·of·some·words",
        "the first 5 of stage 3's 256 sequences of 32 tokens",
        "the budget reads the data ",
    ):
        assert fact in out, fact
    assert not list((tmp_path / "working").iterdir())

    trained = replace(compose(*command.overrides), seed=1)
    _, corpus = preparation.prepare_text(trained.data, trained.tokenizer, Console(quiet=True))
    steps = curriculum.plan(trained.curriculum, trained.train, trained.schedule, 1.0, lambda seq_len: 8)
    batch = Stream(corpus, trained.seed, small_tokenizer.byte_lengths).micro_batch(
        next(step for step in steps if step.stage == 2), 0
    )
    marks = ["▶" if place in batch.segment_starts else "│" for place in range(len(batch.tokens))]
    words = [
        visible(small_tokenizer.decode([token])).replace("<|endoftext|>", "[<|endoftext|>]") for token in batch.tokens
    ]
    lines = [line.strip() for line in out.splitlines()]
    for number in range(5):
        inside = range(32 * number, 32 * number + 32)
        assert f"{number + 1} " + "".join(marks[place] + words[place] for place in inside) in lines
    assert f"{corpus.tokens:,} tokens of {corpus.bytes:,} bytes" in out
    assert f"of {corpus.documents:,} documents" in out


def test_a_stage_that_does_not_exist_is_one_line_before_anything_is_read(command, tmp_path):
    status, out, err = command("stage=11")
    assert (status, out) == (1, "")
    assert err == "error: stage=11: the curriculum has 10 stages, counted from 1\n"
    assert not (tmp_path / "cache").exists()


def test_many_skipped_rows_are_listed_up_to_a_bound(command, tmp_path):
    with (tmp_path / "text" / "broken.jsonl").open("w") as file:
        file.write("{\n" * 150)
    status, out, _ = command()
    assert status == 0
    assert "151 rows gave no document" in out and "broken.jsonl, row 20: " in out and "  and 131 more" in out
    assert "row 21" not in out
