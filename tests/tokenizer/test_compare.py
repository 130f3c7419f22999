"""Tokenizers compared: the figures are those of a plain count, and the command writes them and says what is wrong."""

import argparse
import functools
import inspect
import io
import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import huggingface_hub
import pyarrow.parquet as parquet
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs
from rich.console import Console

from yxanul import cli
from yxanul.compare_tokenizers import compare_tokenizers
from yxanul.config import CompareConfig, TokenizerConfig, TokenizerKind
from yxanul.data.documents import hash64
from yxanul.reporting.tokenizer_table import comparison_page, comparison_tables
from yxanul.tokenizer import compare as comparing
from yxanul.tokenizer.compare import SPANS_WORDS, Measurement, Occurrences, Text, compare, read_text
from yxanul.tokenizer.load import Tokenizer, load_tokenizer, sample

CONFIG = TokenizerConfig(
    kind=TokenizerKind.superbpe,
    path=None,
    repo=None,
    revision=None,
    vocab_size=700,
    transition=500,
    train_bytes=200_000,
    end_of_text="<|endoftext|>",
    bytes_per_token=3.0,
)
MODULE = Path(inspect.getfile(argparse)).read_text(encoding="utf-8")
TEXTS = [
    MODULE[:20_000],
    "Straße, naïve 👍🏽\n\n of the [/b] thing",
    MODULE[30_000:31_000],
    " \n ",
    MODULE[31_000:36_000],
]
PUBLISHED = {  # characters and bytes a token of the FineWeb-Edu sample, and tokens to GPT-2's in percent
    "gpt2": (4.590, 4.608, 0.0),
    "bpe200k": (4.806, 4.826, -4.5),
    "t180k": (6.423, 6.449, -28.5),
    "t80k": (6.995, 7.023, -34.4),
}


@pytest.fixture(scope="module")
def superwords(cache) -> Tokenizer:
    return load_tokenizer(CONFIG, cache, lambda: [MODULE], "argparse")


@pytest.fixture(scope="module")
def lower_case(small_tokenizer, tmp_path_factory) -> Tokenizer:
    """A tokenizer that does not give back what it was given, and whose rules the bulk encoder does not know."""
    description = json.loads(small_tokenizer.path.read_text())
    special = description["added_tokens"][0] | {"id": 512, "content": "of the"}
    description["added_tokens"].append(special)
    path = tmp_path_factory.mktemp("lower") / "lower.json"
    path.write_text(json.dumps(description | {"normalizer": {"type": "Lowercase"}}))
    return load_tokenizer(replace(CONFIG, path=str(path), vocab_size=513), path.parent, list, "")


@pytest.fixture(scope="module")
def measured(small_tokenizer, superwords, lower_case):
    found = compare({"gpt2": small_tokenizer, "super": superwords, "lower": lower_case}, TEXTS, read_text(TEXTS))
    return {each.name: each for each in found}


def text_of(tokenizer: Tokenizer, index: int) -> str:
    return tokenizers.decoders.ByteLevel().decode([tokenizer.library.id_to_token(index)])


def shown(text: Text, measured: list[Measurement], width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(comparison_tables(text, measured))
    return console.file.getvalue()


# The figures


def test_the_text_is_counted():
    text = read_text(iter(TEXTS))
    assert text.documents == [2, 1, 1, 1]  # one of 1,000 characters belongs to the second class
    assert text.words == [
        sum(len(text.split()) for text in TEXTS if low <= len(text) < high)
        for low, high in ((0, 1000), (1000, 4000), (4000, 16000), (16000, 10**9))
    ]
    assert (text.characters, text.bytes) == (len("".join(TEXTS)), len("".join(TEXTS).encode()))
    assert text.beginning == TEXTS[0][:1000]
    with pytest.raises(ValueError, match="no document"):
        read_text([])


@pytest.mark.parametrize("name", ["gpt2", "super"])
def test_figures_are_those_of_a_plain_count(measured, small_tokenizer, superwords, name):
    tokenizer, found = {"gpt2": small_tokenizer, "super": superwords}[name], measured[name]
    documents = [tokenizer.library.encode(text, add_special_tokens=False).ids for text in TEXTS]
    counts = Counter(index for ids in documents for index in ids)
    tokens, words = counts.total(), [len(text.split()) for text in TEXTS]
    spanning = {
        index for index in range(tokenizer.vocab_size) if len(text_of(tokenizer, index).split()) > 1
    }  # this vocabulary's tokens begin and end with no more than one space
    by_bytes = Counter()
    for index, count in counts.items():
        by_bytes[len(tokenizer.library.id_to_token(index))] += count
    assert found.tokens == tokens
    assert found.characters_per_token == pytest.approx(sum(map(len, TEXTS)) / tokens)
    assert found.bytes_per_token == pytest.approx(len("".join(TEXTS).encode()) / tokens)
    assert found.context_bytes == pytest.approx(2048 * found.bytes_per_token)
    assert found.used_vocabulary == pytest.approx(len(counts) / tokenizer.vocab_size)
    assert found.spanning_vocabulary == pytest.approx(len(spanning) / tokenizer.vocab_size)
    assert found.spanning_tokens == pytest.approx(sum(counts[index] for index in spanning) / tokens)
    assert {size: count for size, count in enumerate(found.tokens_by_bytes) if count} == by_bytes
    assert found.tokens_per_word == pytest.approx(tokens / sum(words))
    short = (len(documents[1]) + len(documents[3])) / (words[1] + words[3])
    others = [len(documents[index]) / words[index] for index in (2, 4, 0)]
    assert found.tokens_per_word_by_length == pytest.approx([short, *others])
    assert found.example == [text_of(tokenizer, index) for index in documents[0][:8]]
    assert found.round_trip_failures == 0
    assert (found.path, found.vocab_size) == (str(tokenizer.path), tokenizer.vocab_size)


def test_the_longest_and_the_most_frequent_tokens_across_words(measured, superwords):
    counts = Counter(index for text in TEXTS for index in superwords.encode([text])[0])
    expected = {text_of(superwords, index): count for index, count in counts.items()}
    expected = {token: count for token, count in expected.items() if SPANS_WORDS.search(token)}
    assert len(expected) > 10
    found = measured["super"]
    for listed, key in ((found.most_frequent_spanning, expected.get), (found.longest_spanning, len)):
        assert len(listed) == 10 and all(expected[each.token] == each.count for each in listed)
        assert [key(each.token) for each in listed] == sorted(map(key, expected), reverse=True)[:10]
    assert all(each.bytes == len(each.token.encode()) for each in found.longest_spanning)
    assert measured["gpt2"].longest_spanning == [] and measured["gpt2"].spanning_vocabulary == 0


@pytest.mark.parametrize(
    ("token", "spans"),
    [("a b", True), (",\nThe", True), (".  a", True), (" a", False), ("a \n", False), (" a ", False), ("\n ", False)],
)
def test_what_spans_words(token, spans):
    assert (SPANS_WORDS.search(token) is not None) == spans


def test_special_tokens_are_no_text(measured):
    assert (measured["lower"].vocab_size, measured["lower"].spanning_vocabulary) == (513, 0)


def test_documents_that_do_not_come_back_are_counted(measured):
    assert measured["lower"].round_trip_failures == sum(text != text.lower() for text in TEXTS) > 0


def test_tokens_are_counted_against_gpt2_where_it_is_compared(measured, small_tokenizer):
    reference = measured["gpt2"].tokens
    for each in measured.values():
        assert each.against_reference == pytest.approx(each.tokens / reference - 1)
    [alone] = compare({"other": small_tokenizer}, TEXTS, read_text(TEXTS))
    assert alone.against_reference is None


def test_speeds_are_of_both_encoders_where_there_are_two(measured):
    assert all(speed > 0 for speed in asdict(measured["super"].speed).values())  # and the ids are the same
    assert measured["lower"].speed.stock > 0
    assert measured["lower"].speed.bulk_new is measured["lower"].speed.bulk_known is None


def test_encoders_that_disagree_are_told(superwords, monkeypatch):
    class Backwards:
        def encode(self, texts):
            ids, begins = superwords.stock.encode(texts)
            return ids[::-1], begins

    monkeypatch.setattr(Tokenizer, "bulk_encoder", lambda self: Backwards())
    found = compare({"odd": superwords}, TEXTS, read_text(TEXTS))
    assert not found[0].speed.same_ids and found[0].round_trip_failures > 0
    assert "other ids than the stock library: odd" in shown(read_text(TEXTS), found, 100)


def test_figures_do_not_depend_on_how_the_documents_are_batched(measured, superwords, monkeypatch):
    monkeypatch.setattr(comparing, "BATCH_CHARACTERS", 30)
    done = []
    [again] = compare({"super": superwords}, TEXTS, read_text(TEXTS), lambda name, share: done.append((name, share)))
    unlike = {"speed": again.speed, "against_reference": None}
    assert again == replace(measured["super"], **unlike)
    assert len(done) == 4 and done[-1] == ("super", 1.0) and done == sorted(done)


@given(st.lists(st.text(min_size=1)), st.integers(1, 40), st.randoms())
def test_a_sample_is_the_documents_of_smallest_hash_in_any_order(texts, at_most, random):
    expected = []
    for text in sorted(texts, key=hash64):
        if len("".join(expected).encode()) < at_most:
            expected.append(text)
    random.shuffle(texts)
    assert sample(texts, at_most)[::-1] == expected


@pytest.fixture(scope="module")
def published(shared):
    """Measures one of the published tokenizers on the megabyte of FineWeb-Edu."""
    texts = [row["text"] for row in parquet.read_table(shared / "fineweb_edu_sample").to_pylist()]
    text = read_text(texts)

    @functools.cache
    def one(name: str) -> Measurement:
        size = 50_257 if name == "gpt2" else 200_005
        config = replace(CONFIG, path=str(shared / "tokenizers" / name), vocab_size=size)
        return compare({name: load_tokenizer(config, shared, list, "")}, texts, text)[0]

    return one


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_table_is_reproduced(published, monkeypatch, name):
    monkeypatch.setattr(comparing, "TIMED_CHARACTERS", 1000)
    found = published(name)
    against = round(100 * (found.tokens / published("gpt2").tokens - 1), 1)
    assert (round(found.characters_per_token, 3), round(found.bytes_per_token, 3), against) == PUBLISHED[name]
    assert found.round_trip_failures == 0
    assert (found.spanning_vocabulary > 0) == (name in ("t180k", "t80k"))


# For people


def test_tables_are_narrow_and_show_tokens_as_they_are(measured):
    odd = Occurrences("[/b] x\n\x1b", 7, 3)
    rows = [*measured.values(), replace(measured["super"], name="a[b]" * 20, longest_spanning=[odd])]
    for width in (80, 100):
        tables = shown(read_text(TEXTS), rows, width)
        assert max(map(len, tables.splitlines())) <= width
        assert "[/b]·x⏎\\x1b" in tables and "…" not in tables
        assert f"{measured['super'].characters_per_token:.3f}" in tables
        assert "none in the text: gpt2, lower" in tables
        assert "other ids" not in tables


def test_the_page_needs_nothing_else_and_its_names_are_no_markup(measured):
    rows = [*measured.values(), replace(measured["super"], name="<script>alert(1)</script>")]
    page = comparison_page(read_text(TEXTS), rows, "python -m x 'a<b>'", "2026-11-23")
    own = page.replace(get_plotlyjs(), "")
    assert len(own) < len(page) / 10 and "Plotly.newPlot" in own
    assert "http:" not in own and "https:" not in own and 'src="' not in own
    assert "alert(1)</script>" not in own and "a&lt;b&gt;" in own
    for axis in ("bytes of UTF-8 a token", "tokens a word", "share of the tokens", "characters of the document"):
        assert axis in own


# The command


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs the command in this process, in an empty folder; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that what the command sets is undone
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    def run(*overrides: str) -> tuple[int, str, str]:
        base = ["data=parquet", "data.path=data.jsonl"]
        monkeypatch.setattr(sys, "argv", ["yxanul.compare_tokenizers", *base, *overrides])
        status = cli.run(compare_tokenizers, "compare_tokenizers", CompareConfig)
        return status, *capfd.readouterr()

    return run


def the_line(outcome) -> str:
    status, _, err = outcome
    assert status == 1
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def written(folder: str = "outputs/compare_tokenizers") -> dict:
    return json.loads((Path(folder) / "compare_tokenizers.json").read_text())


def test_the_command_writes_what_it_measured(command, measured, small_tokenizer, superwords, tmp_path):
    for name, tokenizer in (("gpt2", small_tokenizer), ("super", superwords)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_bytes(tokenizer.path.read_bytes())
    status, out, err = command("tokenizers=[./gpt2,super/tokenizer.json]")
    assert (status, err) == (0, "")
    record = written()
    for row, expected in zip(record["tokenizers"], (measured["gpt2"], measured["super"]), strict=True):
        expected = asdict(expected)
        for key in ("speed", "path"):
            row.pop(key), expected.pop(key)
        assert row == expected
    assert record["text"] == asdict(read_text(TEXTS))
    assert record["versions"]["tokenizers"] == tokenizers.__version__ and record["date"] and record["skipped"] == 0
    assert record["command"].startswith("python -m yxanul.compare_tokenizers data=parquet")
    assert record["data"]["path"] == "data.jsonl"
    for name in ("compare_tokenizers.json", "compare_tokenizers.html"):
        assert f"outputs/compare_tokenizers/{name}\n" in out
    assert "<title>" in Path("outputs/compare_tokenizers/compare_tokenizers.html").read_text()


def test_a_choice_that_is_trained_and_a_sample_of_the_data(command, cache):
    own = ["tokenizer=superbpe8k", "tokenizer.vocab_size=600", "tokenizer.transition=500", "data.held_out=0.3"]
    status, _, err = command("tokenizers=[superbpe8k]", *own, "compare_bytes=2000", "output=out")
    assert (status, err) == (0, "")
    [row] = written("out")["tokenizers"]
    assert (row["name"], row["vocab_size"], row["against_reference"]) == ("superbpe8k", 600, None)
    assert Path(row["path"]).is_relative_to(cache / "tokenizers")
    assert written("out")["text"] == asdict(read_text(sample(TEXTS, 2000)))


def test_names_are_unique(command, small_tokenizer, tmp_path):
    for name in ("x.json", "folder/x.json", "x-2.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(small_tokenizer.path.read_bytes())
    assert command("tokenizers=[x.json,folder/x.json,x-2.json]")[0] == 0
    assert [row["name"] for row in written()["tokenizers"]] == ["x", "x-2", "x-2-2"]


def test_rows_without_text_are_an_error_or_counted(command, small_tokenizer, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "some text"}\n{"text": \n')
    assert "data.jsonl, row 2" in the_line(command(f"tokenizers=[{small_tokenizer.path}]"))
    status, out, _ = command(f"tokenizers=[{small_tokenizer.path}]", "data.on_error=skip")
    assert status == 0 and "rows of the data that gave no document: 1" in out
    assert (written()["skipped"], written()["text"]["documents"]) == (1, [1, 0, 0, 0])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("tokenizers=[t80l]",), ["tokenizers=t80l", "did you mean t80k", "superbpe8k"]),
        (("tokenizers=[none.json]",), ["tokenizers=none.json: no such choice"]),
        (("tokenizers=t80k",), ["tokenizers: is a list; write tokenizers=[...]"]),
        (("tokenizers=[]",), ["tokenizers=[]", "at least one"]),
        (("tokenizers=[data.jsonl]",), ["data.jsonl", "is no tokenizer.json"]),
        (("tokenizers=[words.json]",), ["tokenizers=words", "no byte-level BPE"]),
        (("tokenizers=[good.json]", "compare_bytes=0"), ["compare_bytes=0", "greater than 0"]),
        (("tokenizers=[good.json]", "output=data.jsonl"), ["output=data.jsonl", "name a folder"]),
        (("tokenizers=[good.json]", "output=data.jsonl/x"), ["output=data.jsonl/x", "name a folder"]),
        (("tokenizers=[good.json]", "data.path=empty.txt"), ["holds no document"]),
        (("tokenizers=[good.json]", "data.path=none"), ["data.path=none"]),
        (("tokenizrs=[good.json]",), ["tokenizrs", "did you mean tokenizers?"]),
        (("tokenizers=[t180k]",), ["tokenizers=t180k", "OfflineModeIsEnabled", "tokenizers=[/path/to/t180k/"]),
    ],
)
def test_what_cannot_work_is_one_line(command, small_tokenizer, tmp_path, monkeypatch, overrides, says):
    def offline(*args, **rest):
        raise huggingface_hub.errors.OfflineModeIsEnabled("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    (tmp_path / "good.json").write_bytes(small_tokenizer.path.read_bytes())
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "words.json"))
    (tmp_path / "empty.txt").touch()
    line = the_line(command(*overrides))
    for words in says:
        assert words in line
    assert not list(tmp_path.rglob("compare_tokenizers.json")) and not list(tmp_path.rglob("*.html"))
