"""The real client of the Hugging Face hub against a hub of a few files on 127.0.0.1."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from yxanul.data import download as module
from yxanul.data.download import RECORD, download, recorded
from yxanul.errors import UserError

from .hub import FILES, FIRST, NEW, OLD, PARQUET, REPO, SMALL, Hub, is_body


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


@pytest.fixture
def get(hub, tmp_path):
    """Downloads the parquet files of the hub into a folder."""

    def get(revision: str | None = None, pattern: str = "data/*.parquet", repo: str = REPO) -> Path:
        return download(repo, revision, pattern, tmp_path / "text", hub.endpoint)

    return get


def content(folder: Path) -> dict[str, bytes]:
    """What was downloaded into `folder`, without the library's and our own notes."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if RECORD not in path.name}


def failure(get, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as raised:
        get(*arguments, **keywords)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def status(code: int, error: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(code=code, error=error)


# What is fetched


def test_the_matching_files_are_fetched_and_recorded(hub, get, tmp_path, capfd):
    assert get() == tmp_path / "text"
    assert content(tmp_path / "text") == PARQUET
    assert hub.bodies() == sorted(PARQUET)
    record = recorded(tmp_path / "text")
    assert (record["repo"], record["revision"], record["pattern"]) == (REPO, OLD, "data/*.parquet")
    assert record["asked"] is None
    assert record["files"] == {
        path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in PARQUET.items()
    }
    assert capfd.readouterr() == ("", "")  # bars are for terminals


def test_a_file_without_a_hash_is_fetched(hub, get, tmp_path):
    get(pattern="*.txt")
    assert content(tmp_path / "text") == {SMALL: FILES[SMALL]}
    assert recorded(tmp_path / "text")["files"] == {SMALL: {"size": 5, "sha256": None}}


def test_started_again_nothing_is_asked(hub, get, tmp_path):
    get()
    hub.asked.clear()
    get()
    get(OLD)
    assert hub.asked == []


def test_another_pattern_adds_to_the_folder(hub, get, tmp_path):
    get(pattern=FIRST)
    hub.refs["main"], hub.commits[NEW] = NEW, {}
    hub.asked.clear()
    get()
    assert content(tmp_path / "text") == PARQUET
    assert hub.bodies() == sorted(PARQUET)[1:]
    assert recorded(tmp_path / "text")["revision"] == OLD


def test_files_are_fetched_side_by_side(hub, get, tmp_path):
    together = threading.Barrier(len(PARQUET), timeout=5)  # broken, it would break the connections
    hub.before_body = lambda path: together.wait()
    get()
    assert content(tmp_path / "text") == PARQUET


def test_the_record_is_there_before_the_first_file(hub, get, tmp_path):
    seen = []
    hub.before_body = lambda path: seen.append(recorded(tmp_path / "text")["revision"])
    get()
    assert seen == [OLD] * len(PARQUET)


# Interrupted


def test_a_cut_connection_is_resumed(hub, get, tmp_path):
    chunk = 10 * 2**20  # the library keeps whole chunks only
    hub.commits[OLD]["large.bin"] = os.urandom(chunk + 1_000_000)
    hub.faults["large.bin"] = [chunk + 500_000]
    get(pattern="*.bin")
    assert content(tmp_path / "text") == {"large.bin": hub.commits[OLD]["large.bin"]}
    assert [span for kind, path, span in hub.asked if is_body(kind, path)] == [None, f"bytes={chunk}-"]


def test_a_failed_download_goes_on_with_what_is_missing(hub, get, tmp_path):
    hub.faults[FIRST] = [120_000, status(500), status(500)]  # cut, not resumed, not begun again
    message = failure(get)
    assert FIRST in message and "500" in message and "start again" in message and "data.path=DIR" in message
    kept = set(content(tmp_path / "text"))
    assert FIRST not in kept
    hub.asked.clear()
    get()
    assert content(tmp_path / "text") == PARQUET
    assert hub.bodies() == sorted(set(PARQUET) - kept)


def test_a_killed_download_goes_on(hub, tmp_path):
    released = threading.Event()
    hub.before_body = lambda path: path == FIRST and released.wait(20)
    code = f"""if True:
        from pathlib import Path
        from yxanul.data.download import download
        download({REPO!r}, None, "data/*.parquet", Path({str(tmp_path)!r}))"""
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"HF_ENDPOINT": hub.endpoint})
    try:
        wait_for(lambda: content(tmp_path).keys() == PARQUET.keys() - {FIRST} and FIRST in hub.bodies())
    finally:
        process.kill()
        process.wait()
        released.set()
    assert list(tmp_path.rglob("*.incomplete"))
    hub.asked.clear()
    download(REPO, None, "data/*.parquet", tmp_path, hub.endpoint)
    assert content(tmp_path) == PARQUET
    assert hub.bodies() == [FIRST]
    assert not list(tmp_path.rglob("*.incomplete"))


def wait_for(condition, seconds: float = 20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("age", [0, 3600], ids=["at once", "later"])
def test_a_truncated_file_is_mended(hub, get, tmp_path, age):
    file = get() / FIRST
    os.truncate(file, 1000)
    os.utime(file, (time.time() + age, time.time() + age))
    hub.asked.clear()
    get()
    assert content(tmp_path / "text") == PARQUET
    assert hub.bodies() == [FIRST]


# Pinned


def test_the_commit_stays_when_the_hub_moves_on(hub, get, tmp_path):
    folder = get()
    hub.refs["main"], hub.commits[NEW] = NEW, dict.fromkeys(FILES, b"new")
    (folder / FIRST).unlink()
    get()
    assert content(folder) == PARQUET
    assert recorded(folder)["revision"] == OLD


def test_a_branch_is_the_commit_that_it_was(hub, get, tmp_path):
    hub.refs["v1"] = OLD
    folder = get("v1")
    hub.refs["v1"], hub.commits[NEW] = NEW, {}
    (folder / FIRST).unlink()
    get("v1")
    assert content(folder) == PARQUET
    assert (recorded(folder)["asked"], recorded(folder)["revision"]) == ("v1", OLD)


def test_a_folder_holds_one_commit_of_one_dataset(hub, get):
    get()
    hub.asked.clear()
    for message in (failure(get, NEW), failure(get, repo="Yxanul/other")):
        assert OLD in message and "another folder" in message
    assert hub.asked == []


def test_a_commit_that_is_not_the_newest(hub, get, tmp_path):
    hub.refs["main"], hub.commits[NEW] = NEW, dict.fromkeys(FILES, b"new")
    get(OLD)
    assert content(tmp_path / "text") == PARQUET


# Wrong content


def test_a_wrong_checksum_is_fetched_again(hub, get, tmp_path):
    hub.faults[FIRST] = [bytes(len(FILES[FIRST]))]
    get()
    assert content(tmp_path / "text") == PARQUET
    assert hub.bodies().count(FIRST) == 2


def test_a_checksum_that_stays_wrong_is_named(hub, get, tmp_path):
    hub.faults[FIRST] = [bytes(len(FILES[FIRST]))] * 2
    message = failure(get)
    assert FIRST in message and "sha256" in message and hashlib.sha256(FILES[FIRST]).hexdigest() in message
    assert FIRST not in content(tmp_path / "text")
    assert hub.bodies().count(FIRST) == 2


def test_a_size_that_stays_wrong_is_named(hub, get, tmp_path):
    hub.listed_size[SMALL] = 7
    message = failure(get, pattern=SMALL)
    assert SMALL in message and "size is 5, not the hub's 7" in message
    assert content(tmp_path / "text") == {}
    assert hub.bodies() == [SMALL, SMALL]


def test_a_body_that_is_short_is_named(hub, get):
    hub.faults[SMALL] = [b"no\n"] * 2
    message = failure(get, pattern=SMALL)
    assert SMALL in message and "should be of size 5" in message


# Refused


@pytest.mark.parametrize(
    "answer",
    [status(401), status(401, "RepoNotFound"), status(403), status(403, "GatedRepo"), status(404)],
    ids=lambda answer: f"{answer.code} {answer.error}",
)
def test_a_refusal_is_one_line(hub, get, answer):
    hub.status = answer
    message = failure(get)
    for piece in (REPO, str(answer.code), "hf auth login", "data.path=DIR"):
        assert piece in message


def test_an_unknown_dataset_revision_or_name_is_one_line(hub, get):
    for message in (failure(get, repo="Yxanul/none"), failure(get, revision="v9"), failure(get, repo="no/such/name")):
        assert "check the name" in message
    assert "v9" in failure(get, revision="v9")


def test_no_match_says_what_there_is(hub, get, tmp_path):
    message = failure(get, pattern="*.csv")
    assert "*.csv" in message and FIRST in message
    assert recorded(tmp_path / "text") is None


def test_a_hub_in_trouble_is_one_line(hub, get):
    hub.status = status(502)
    message = failure(get)
    assert "502" in message and "data.path=DIR" in message


def test_no_hub_is_one_line_at_once(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        start = time.monotonic()
        message = failure(download, REPO, None, "*", tmp_path, endpoint)
    assert time.monotonic() - start < 2
    assert "ConnectError" in message and "data.path=DIR" in message


def test_a_silent_hub_is_given_up(tmp_path, monkeypatch):
    assert module.ANSWER_SECONDS < 10
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        message = failure(download, REPO, None, "*", tmp_path, endpoint)
    assert time.monotonic() - start < 2
    assert "data.path=DIR" in message


def test_a_hub_that_is_sought_for_long_is_given_up(hub, get, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    start = time.monotonic()
    assert "no answer in 0.3 seconds" in failure(get)
    assert time.monotonic() - start < 1.5


# Offline


def test_offline_what_is_complete_is_used(hub, get, tmp_path, monkeypatch):
    get()
    hub.asked.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert get() == tmp_path / "text"
    os.truncate(tmp_path / "text" / FIRST, 10)
    message = failure(get)
    assert "HF_HUB_OFFLINE" in message and "data.path=DIR" in message
    assert hub.asked == []


# The disk


def test_a_disk_too_small_is_seen_before_the_first_file(hub, get, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    message = failure(get)
    assert "0.00 GB are free" in message and "make room" in message
    assert hub.bodies() == []


def test_a_folder_that_cannot_be_written_is_one_line(hub, get, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "data").write_text("a file where a folder has to be")
    assert "cannot be written" in failure(get)


def test_a_full_disk_is_one_line(hub, get, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "hf_hub_download", full)
    message = failure(get)
    assert "No space left on device" in message and "make room" in message


# The record


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"repo": "a/b", "asked": null, "revision": "c", "pattern": "*", "files": ["d"]}',
        '{"repo": "a/b", "asked": null, "revision": "c", "pattern": "*", "files": {"d": {"size": "5"}}}',
        '{"repo": 1, "asked": null, "revision": "c", "pattern": "*", "files": {}}',
    ],
)
def test_a_damaged_record_is_one_line(hub, get, tmp_path, text):
    get()
    (tmp_path / "text" / RECORD).write_text(text)
    hub.asked.clear()
    message = failure(get)
    assert RECORD in message and "remove it" in message
    assert hub.asked == []
    (tmp_path / "text" / RECORD).unlink()
    get()
    assert hub.bodies() == []


def test_an_empty_folder_has_no_record(tmp_path):
    assert recorded(tmp_path) is None
    assert recorded(tmp_path / "none") is None
