"""Tokens on disk: they are the documents, made once, made whole, and made again only where they are not."""

import json
import os
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from yxanul.config import DataConfig, DataKind, OnError
from yxanul.data import preparation, shards
from yxanul.data.documents import Part, unit_hash
from yxanul.data.shards import Corpus, training_documents
from yxanul.errors import UserError

HELD_OUT = 0.3
SUFFIXES = [".tokens", ".offsets.npy", ".hashes.npy", ".held_out.parquet", ".json", ".seal.json"]
PARTS = [
    ["one", "two two", "naïve 🇩🇪👍🏽\r\n", "four <|endoftext|> inside", "five\x00", "six" * 50],
    [f"text number {n}\n" for n in range(40)],
    ["the same", "the same", "the same again"],
]


def prepare(parts, tokenizer, held_out, cache, **changes) -> Corpus:
    """`preparation.prepare` with the data's settings that matter here."""
    data = DataConfig(
        kind=DataKind.files,
        path=None,
        repo=None,
        revision=None,
        files=None,
        expected_files=None,
        text_column="text",
        cache=str(cache),
        held_out=held_out,
        held_out_path=None,
        on_error=OnError.stop,
        workers=None,
        part=0,
        parts=1,
    )
    return preparation.prepare(parts, tokenizer, replace(data, **changes), 4.0, Console(quiet=True))


def part(name: str, texts: list[str]) -> Part:
    return Part(name, f"fingerprint of {name}", lambda: iter(texts))


def parts_of(texts: list[list[str]]) -> list[Part]:
    return [part(f"part {index}", of_part) for index, of_part in enumerate(texts)]


def unread(parts: list[Part]) -> list[Part]:
    """The same parts, but reading one is an error."""

    def documents():
        raise AssertionError("was read")
        yield

    return [replace(each, documents=documents) for each in parts]


def decoded(corpus: Corpus, tokenizer) -> list[list[str]]:
    """The training documents by shard, read in the plainest way."""
    found = []
    for shard in corpus.shards:
        tokens = np.fromfile(corpus.folder / f"{shard.name}.tokens", corpus.dtype).tolist()
        offsets = np.load(corpus.folder / f"{shard.name}.offsets.npy").tolist()
        assert offsets[0] == 0 and offsets[-1] == len(tokens) == shard.tokens
        documents = [tokens[begin:end] for begin, end in pairwise(offsets)]
        assert all(ids[0] == tokenizer.end_of_text for ids in documents)
        assert not any(tokenizer.end_of_text in ids[1:] for ids in documents)
        found.append([tokenizer.decode(ids[1:]) for ids in documents])
    return found


def kept_apart(corpus: Corpus) -> list[list[str]]:
    files = [corpus.folder / f"{shard.name}.held_out.parquet" for shard in corpus.shards]
    return [parquet.read_table(file)["text"].to_pylist() for file in files]


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but seals, which hold times."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".seal.json"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def check_whole(corpus: Corpus, texts: list[list[str]], tokenizer) -> None:
    """Documents in order, each either in the tokens or held out, and the figures count them."""
    for index, (trained, held, of_part) in enumerate(
        zip(decoded(corpus, tokenizer), kept_apart(corpus), texts, strict=True)
    ):
        assert trained == [text for text in of_part if unit_hash(text) >= HELD_OUT]
        assert held == [text for text in of_part if unit_hash(text) < HELD_OUT]
        shard = corpus.shards[index]
        assert (shard.part, shard.documents, shard.held_out_documents) == (f"part {index}", len(trained), len(held))
        assert shard.bytes == sum(len(text.encode()) for text in trained)
    assert corpus.tokens == sum(shard.tokens for shard in corpus.shards)
    assert corpus.bytes == sum(shard.bytes for shard in corpus.shards)


def test_tokens_are_the_documents(small_tokenizer, tmp_path):
    corpus = prepare(parts_of(PARTS), small_tokenizer, HELD_OUT, tmp_path)
    check_whole(corpus, PARTS, small_tokenizer)
    assert sum(map(len, kept_apart(corpus))) > 5 and sum(map(len, decoded(corpus, small_tokenizer))) > 5


@settings(deadline=None, max_examples=15)
@given(texts=st.lists(st.lists(st.text(min_size=1), max_size=6), min_size=1, max_size=3))
def test_any_documents_come_back(small_tokenizer, tmp_path_factory, texts):
    texts = [*texts, ["there is always one to train on", "and", "a", "few", "more"]]
    check_whole(
        prepare(parts_of(texts), small_tokenizer, HELD_OUT, tmp_path_factory.mktemp("any")), texts, small_tokenizer
    )


def test_batches_of_encoding_do_not_show(small_tokenizer, tmp_path, monkeypatch):
    whole = prepare(parts_of(PARTS), small_tokenizer, HELD_OUT, tmp_path / "whole")
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 10)
    pieces = prepare(parts_of(PARTS), small_tokenizer, HELD_OUT, tmp_path / "pieces")
    assert contents(pieces.folder) == contents(whole.folder)


def test_what_is_held_out_is_no_training_document(small_tokenizer, tmp_path):
    corpus = prepare(parts_of(PARTS), small_tokenizer, HELD_OUT, tmp_path)
    trained = {text for of_part in decoded(corpus, small_tokenizer) for text in of_part}
    held = {text for of_part in kept_apart(corpus) for text in of_part}
    assert not trained & held
    assert trained | held == {text for of_part in PARTS for text in of_part}
    assert set(training_documents(parts_of(PARTS), HELD_OUT)) == trained


@pytest.mark.parametrize(("vocab_size", "dtype"), [(512, "<u2"), (2**16, "<u2"), (2**16 + 1, "<u4"), (200_005, "<u4")])
def test_tokens_take_as_many_bytes_as_the_vocabulary_needs(small_tokenizer, tmp_path, vocab_size, dtype):
    tokenizer = replace(small_tokenizer, vocab_size=vocab_size)
    corpus = prepare(parts_of(PARTS), tokenizer, HELD_OUT, tmp_path)
    assert corpus.dtype == np.dtype(dtype)
    check_whole(corpus, PARTS, tokenizer)
    tokens, _ = corpus.open()
    assert [array.dtype for array in tokens] == [np.dtype(dtype)] * len(tokens)


def test_ids_beyond_16_bits_survive(small_tokenizer, tmp_path):
    """The largest ids that the type must hold, through a tokenizer that is only arithmetic."""

    class Big:
        vocab_size, end_of_text, fingerprint = 200_005, 200_004, "big"

        def bulk_encoder(self):
            return self

        def encode(self, texts):
            ids = np.array([199_999 - ord(character) for character in "".join(texts)], dtype=np.int32)
            return ids, np.cumsum([0, *map(len, texts)])

    corpus = prepare([part("p", ["ab", "c", "dd", "xyz"])], Big(), 1e-9, tmp_path)
    [tokens], [offsets] = corpus.open()
    expected = [[200_004, *(199_999 - ord(character) for character in text)] for text in ["ab", "c", "dd", "xyz"]]
    assert tokens.tolist() == list(chain.from_iterable(expected))
    assert np.diff(offsets).tolist() == [len(ids) for ids in expected]


def test_the_second_time_nothing_is_read_or_written(small_tokenizer, tmp_path):
    first = prepare(parts_of(PARTS), small_tokenizer, HELD_OUT, tmp_path)
    before = times(first.folder)
    second = prepare(unread(parts_of(PARTS)), small_tokenizer, HELD_OUT, tmp_path)
    assert second == first
    assert times(first.folder) == before
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["tokenizer"] == small_tokenizer.fingerprint
    assert (manifest["tokens"], manifest["bytes"]) == (first.tokens, first.bytes)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["delete", "shorten", "empty", "turn"])
def test_only_a_shard_that_is_not_whole_is_made_again(small_tokenizer, tmp_path, suffix, damage):
    corpus = prepare(parts_of(PARTS), small_tokenizer, HELD_OUT, tmp_path)
    before, written = contents(corpus.folder), times(corpus.folder)
    bad = corpus.folder / f"00001{suffix}"
    content = bad.read_bytes()
    bad.unlink()
    if damage != "delete":
        turned = bytes([content[0] ^ 1, *content[1:]])
        bad.write_bytes({"shorten": content[:-2], "empty": b"", "turn": turned}[damage])
    parts = parts_of(PARTS)
    again = prepare([*unread(parts[:1]), parts[1], *unread(parts[2:])], small_tokenizer, HELD_OUT, tmp_path)
    assert again == corpus
    assert contents(corpus.folder) == before
    untouched = {name for name, time in times(corpus.folder).items() if time == written[name]}
    assert {name for name in before if name.startswith(("00000", "00002"))} <= untouched


def test_anything_else_gets_another_folder(small_tokenizer, tmp_path):
    parts = parts_of(PARTS)
    others = [
        (parts, small_tokenizer, HELD_OUT),
        ([replace(parts[0], fingerprint="changed"), *parts[1:]], small_tokenizer, HELD_OUT),
        (parts[:2], small_tokenizer, HELD_OUT),
        (parts[::-1], small_tokenizer, HELD_OUT),
        (parts, replace(small_tokenizer, fingerprint="changed"), HELD_OUT),
        (parts, small_tokenizer, HELD_OUT / 2),
    ]
    corpora = [prepare(*other, tmp_path) for other in others]
    assert len({corpus.folder for corpus in corpora}) == len(others)


def test_the_fingerprint_is_of_the_tokens_alone(small_tokenizer, tmp_path):
    """A copy of the data elsewhere, with other times, is the same data; other documents or another order are not."""
    parts = parts_of(PARTS)
    copies = [replace(part, fingerprint=f"copy of {part.fingerprint}") for part in parts]
    same, copied, fewer, turned = (
        prepare(some, small_tokenizer, HELD_OUT, tmp_path).fingerprint
        for some in (parts, copies, parts[:2], parts[::-1])
    )
    assert same == copied
    assert len({same, fewer, turned}) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
@pytest.mark.parametrize("after", [0, 1, 20, 39])
def test_a_stopped_preparation_leaves_nothing_half_written_and_goes_on(
    small_tokenizer, tmp_path, monkeypatch, error, after
):
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 50)

    def documents():
        yield from PARTS[1][:after]
        raise error

    parts = parts_of(PARTS)
    with pytest.raises(error):
        prepare([parts[0], replace(parts[1], documents=documents), parts[2]], small_tokenizer, HELD_OUT, tmp_path)
    [folder] = (tmp_path / "tokens").iterdir()
    assert {name[:6] for name in times(folder) if not name.endswith(".lock")} == {"00000."}
    corpus = prepare([*unread(parts[:1]), *parts[1:]], small_tokenizer, HELD_OUT, tmp_path)
    undisturbed = prepare(parts, small_tokenizer, HELD_OUT, tmp_path / "undisturbed")
    assert contents(corpus.folder) == contents(undisturbed.folder)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_between_the_files_of_a_shard_is_made_good(small_tokenizer, tmp_path, monkeypatch, suffix):
    real = os.replace

    def failing(source, target):
        if Path(target).name == f"00001{suffix}":
            raise OSError("the disk is gone")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        prepare(parts_of(PARTS), small_tokenizer, HELD_OUT, tmp_path)
    monkeypatch.undo()
    parts = parts_of(PARTS)
    corpus = prepare([*unread(parts[:1]), *parts[1:]], small_tokenizer, HELD_OUT, tmp_path)
    check_whole(corpus, PARTS, small_tokenizer)
    assert not list(corpus.folder.glob(".0*"))


# Held-out text


@pytest.fixture(scope="module")
def corpus(small_tokenizer, tmp_path_factory):
    return prepare(parts_of(PARTS), small_tokenizer, HELD_OUT, tmp_path_factory.mktemp("held_out"))


@given(at_most=st.integers(0, 2000))
def test_held_out_is_whole_documents_by_hash_up_to_the_bound(corpus, at_most):
    everything = sorted((text for of_part in kept_apart(corpus) for text in of_part), key=unit_hash)
    texts = corpus.held_out(at_most)
    assert texts == everything[: len(texts)] and texts
    sizes = [len(text.encode()) for text in everything]
    assert sum(sizes[: len(texts)]) <= at_most or len(texts) == 1
    assert len(texts) == len(everything) or sum(sizes[: len(texts) + 1]) > at_most


def test_every_tokenizer_is_judged_on_the_same_text(corpus, small_tokenizer, tmp_path):
    other = replace(small_tokenizer, fingerprint="another", vocab_size=100_000)
    mine = prepare(parts_of(PARTS[::-1]), other, HELD_OUT, tmp_path)
    for at_most in (0, 50, 10**9):
        assert mine.held_out(at_most) == corpus.held_out(at_most)


def test_nothing_held_out_says_what_to_raise(small_tokenizer, tmp_path):
    corpus = prepare(parts_of([["only one"]]), small_tokenizer, 1e-9, tmp_path)
    with pytest.raises(UserError, match=r"raise data\.held_out"):
        corpus.held_out(1000)


@pytest.mark.parametrize("texts", [[[]], [["all of it"], ["is held out"]]])
def test_nothing_to_train_on_says_what_to_lower(small_tokenizer, tmp_path, texts):
    for _ in range(2):
        with pytest.raises(UserError, match=r"lower data\.held_out"):
            prepare(parts_of(texts), small_tokenizer, 1 - 1e-9, tmp_path)


def test_a_shard_without_training_documents_is_no_hindrance(small_tokenizer, tmp_path):
    texts = [[], PARTS[1], ["held out, for its hash is small 0"]]
    corpus = prepare(parts_of(texts), small_tokenizer, HELD_OUT, tmp_path)
    tokens, offsets = corpus.open()
    filled = [shard.tokens for shard in corpus.shards if shard.documents]
    assert [len(array) for array in tokens] == filled == [array[-1] for array in offsets]
    assert 1 <= len(filled) < len(texts)
