"""Shards made by workers: the same as by one process, whatever is killed, missing or broken on the way."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from yxanul.config import DataConfig, DataKind, OnError
from yxanul.data import preparation, shards
from yxanul.data.documents import Part, Skipped
from yxanul.data.preparation import Job, prepare
from yxanul.data.shards import Corpus, shard_folder
from yxanul.errors import UserError
from yxanul.files import locked

HELD_OUT = 0.2


def texts_of(index: int) -> list[str]:
    return [f"document {index}.{n} " + "some words " * (n % 7) for n in range(40)]


def killing(texts: list[str], mark: Path, times: int) -> list[str]:
    """The texts; a process that asks for them is killed, `times` times."""
    kills = len(list(mark.glob("*")))
    if kills < times:
        (mark / f"{kills}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return texts


def failing(texts: list[str], error: Exception) -> list[str]:
    raise error


def slow(texts: list[str], mark: Path) -> list[str]:
    (mark / f"{os.getpid()}").touch()
    time.sleep(0.3)
    return texts


def parts_of(count: int, odd: dict[int, Callable] | None = None) -> list[Part]:
    reads = [partial((odd or {}).get(index, list), texts_of(index)) for index in range(count)]
    return [Part(f"part {index}", f"print {index}", read, 1000) for index, read in enumerate(reads)]


@pytest.fixture
def tokenize(small_tokenizer, tmp_path):
    """`prepare` with workers into a folder of this test's."""

    def run(source: list[Part], cache: str = "cache", **changes) -> Corpus:
        values = {
            "kind": DataKind.files,
            "path": None,
            "repo": None,
            "revision": None,
            "files": None,
            "expected_files": None,
            "text_column": "text",
            "cache": str(tmp_path / cache),
            "held_out": HELD_OUT,
            "held_out_path": None,
            "on_error": OnError.stop,
            "workers": 2,
            "part": 0,
            "parts": 1,
        }
        return prepare(source, small_tokenizer, DataConfig(**(values | changes)), 4.0, Console(quiet=True))

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but seals, which hold times."""
    files = (file for file in folder.iterdir() if not file.name.endswith((".lock", ".seal.json")))
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_make_what_one_process_makes(tokenize, workers):
    one = tokenize(parts_of(5), cache="one", workers=1)
    many = tokenize(parts_of(5), workers=workers)
    assert contents(many.folder) == contents(one.folder)
    assert many.fingerprint == one.fingerprint


def test_workers_share_the_parts(tokenize, tmp_path):
    (tmp_path / "mark").mkdir()
    tokenize(parts_of(4, dict.fromkeys(range(4), partial(slow, mark=tmp_path / "mark"))))
    processes = {int(file.name) for file in (tmp_path / "mark").iterdir()}
    assert len(processes) == 2 and os.getpid() not in processes


# Shares of several machines


def test_shares_together_are_the_whole(tokenize):
    whole = tokenize(parts_of(7), cache="whole")
    for part in (2, 0):
        share = tokenize(parts_of(7), part=part, parts=3)
        assert len(share.shards) < len(whole.shards) == share.parts
    manifest = json.loads((share.folder / "manifest.json").read_text())
    assert (manifest["finished"], manifest["parts"]) == (len(share.shards), 7)
    last = tokenize(parts_of(7), part=1, parts=3)
    assert contents(last.folder) == contents(whole.folder)
    assert last.shards == whole.shards


def test_a_share_without_parts_is_no_error(tokenize):
    assert tokenize(parts_of(1), part=1, parts=2).shards == []


def test_processes_that_start_at_once_share_the_work(tokenize, tmp_path):
    (tmp_path / "mark").mkdir()
    parts = parts_of(4, dict.fromkeys(range(4), partial(slow, mark=tmp_path / "mark")))
    others = [multiprocessing.get_context("fork").Process(target=tokenize, args=(parts,)) for _ in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0, 0, 0]
    together = tokenize(parts)
    assert contents(together.folder) == contents(tokenize(parts_of(4), cache="alone").folder)


def test_a_shard_that_another_process_writes_is_waited_for(small_tokenizer, tokenize, tmp_path):
    parts = parts_of(2)
    alone = tokenize(parts, cache="alone")
    folder = shard_folder(parts, small_tokenizer.fingerprint, 512, small_tokenizer.end_of_text, HELD_OUT, tmp_path)
    job = Job(folder, small_tokenizer.bulk_encoder(), OnError.stop)
    with locked(folder.path / ".00000.lock"):
        other = multiprocessing.get_context("fork").Process(target=job.make, args=(["00000", "00001"], str, max))
        other.start()
        while not folder.finished("00001"):
            time.sleep(0.01)
        assert other.is_alive() and not folder.finished("00000")
    other.join()
    assert folder.finished("00000") == alone.shards[0]


# Killed workers


def test_a_killed_worker_costs_nothing_but_time(tokenize, tmp_path, caplog):
    (tmp_path / "mark").mkdir()
    corpus = tokenize(parts_of(5, {2: partial(killing, mark=tmp_path / "mark", times=1)}))
    assert contents(corpus.folder) == contents(tokenize(parts_of(5), cache="undisturbed").folder)
    assert "a worker was killed by SIGKILL at part 2" in caplog.text


def test_a_part_that_workers_do_not_survive_stops(tokenize, tmp_path):
    (tmp_path / "mark").mkdir()
    with pytest.raises(UserError, match=r"part 2: 2 workers were killed over it .*data\.on_error=skip"):
        tokenize(parts_of(5, {2: partial(killing, mark=tmp_path / "mark", times=9)}))
    corpus = tokenize(parts_of(5))
    assert contents(corpus.folder) == contents(tokenize(parts_of(5), cache="undisturbed").folder)


def test_a_part_that_workers_do_not_survive_is_skipped_and_told(tokenize, tmp_path):
    (tmp_path / "mark").mkdir()
    parts = parts_of(5, {2: partial(killing, mark=tmp_path / "mark", times=9)})
    corpus = tokenize(parts, on_error=OnError.skip)
    assert [shard.skipped for shard in corpus.shards] == [0, 0, 1, 0, 0]
    assert corpus.shards[2].tokens == 0 and "2 workers were killed" in corpus.shards[2].skips[0]
    manifest = json.loads((corpus.folder / "manifest.json").read_text())
    assert manifest["skipped"] == 1 and manifest["shards"][2]["skips"] == corpus.shards[2].skips


@pytest.mark.parametrize("error", [UserError("no good"), OSError(28, "No space left on device", "file")])
def test_an_error_in_a_worker_is_the_error(tokenize, error):
    with pytest.raises(type(error)) as raised:
        tokenize(parts_of(5, {2: partial(failing, error=error)}))
    assert str(raised.value) == str(error)
    assert not multiprocessing.active_children()


def test_a_bug_in_a_worker_is_no_mistake_of_the_users(tokenize):
    with pytest.raises(RuntimeError, match="a worker failed"):
        tokenize(parts_of(3, {1: partial(failing, error=ZeroDivisionError())}))


# Rows that give no document


BAD = [Skipped("a.parquet", 7, "is null"), Skipped("a.parquet", 9, "is not UTF-8")]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_rows_stop_with_file_and_row(tokenize, workers):
    with pytest.raises(UserError, match=r"a\.parquet, row 7: is null; mend .*data\.on_error=skip"):
        tokenize(parts_of(3, {1: lambda texts: [*texts[:9], *BAD, *texts[9:]]}) if workers == 1 else bad_parts())


def bad_parts() -> list[Part]:
    return parts_of(3, {1: with_bad_rows})


def with_bad_rows(texts: list[str]) -> list[str | Skipped]:
    return [BAD[0], *texts, BAD[1]]


def test_bad_rows_are_skipped_counted_and_listed(tokenize, caplog, monkeypatch):
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 100)
    monkeypatch.setattr(shards, "SKIPS_LISTED", 1)
    corpus = tokenize(bad_parts(), on_error=OnError.skip)
    assert [(shard.skipped, shard.skips) for shard in corpus.shards] == [(0, []), (2, [str(BAD[0])]), (0, [])]
    clean = tokenize(parts_of(3), cache="clean")
    assert [shard.sha256 for shard in corpus.shards] == [shard.sha256 for shard in clean.shards]
    assert corpus.skipped == corpus.record()["skipped"] == 2
    assert json.loads((corpus.folder / "manifest.json").read_text())["skipped"] == 2
    assert "2 rows gave no document, the first a.parquet, row 7: is null" in caplog.text


# Downloads: what is asked of the hub and when


@pytest.mark.parametrize(
    ("path", "files", "there", "fetches"),
    [
        ("text/data", "data/*.parquet", False, "text"),
        ("text/data", "data/*.parquet", True, None),
        ("text", "*.parquet", False, "text"),
        ("copy", "data/*.parquet", False, None),
        ("a/b/c", "b/c/*.parquet", False, "a"),
    ],
)
def test_what_is_missing_is_downloaded_to_where_the_path_leads(
    compose, tmp_path, monkeypatch, path, files, there, fetches
):
    asked = []
    monkeypatch.setattr("yxanul.data.download.download", lambda *arguments: asked.append(arguments))
    if there:
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "x.parquet").touch()
    data = compose("data=fineweb_edu", f"data.path={tmp_path / path}", f"data.files={files}").data
    preparation.fetch(data)
    expected = [(data.repo, None, files, tmp_path / fetches)] if fetches else []
    assert asked == expected
