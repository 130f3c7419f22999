"""Seals: which files are still what they were, and which are read to know it."""

import os
import shutil

import pytest

from yxanul import seals
from yxanul.seals import intact, seal, seal_of

NAMES = ("one", "two")
CONTENT = b"some content"


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(CONTENT)
    seal(*(tmp_path / name for name in NAMES))
    return tmp_path


def later(path) -> None:
    """As if the file had been written a second later."""
    time = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize("bit", range(8 * len(CONTENT)))
def test_a_turned_bit_is_noticed(folder, bit):
    content = bytearray(CONTENT)
    content[bit // 8] ^= 1 << bit % 8
    (folder / "two").write_bytes(content)
    later(folder / "two")
    assert not intact(folder / "one")
    (folder / "two").write_bytes(CONTENT)
    assert intact(folder / "one")


@pytest.mark.parametrize("content", [None, b"", CONTENT[:-1], CONTENT + b" "])
def test_a_file_that_is_gone_or_of_another_size_is_noticed(folder, content):
    (folder / "one").unlink() if content is None else (folder / "one").write_bytes(content)
    assert not intact(folder / "one")


def test_what_has_its_time_is_not_read_and_a_copy_is_read_once(folder, tmp_path_factory, monkeypatch):
    copy = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(folder, copy)
    for name in NAMES:
        later(copy / name)
    read = []
    hashed = seals.sha256
    monkeypatch.setattr(seals, "sha256", lambda path: read.append(path) or hashed(path))
    assert intact(folder / "one")
    assert read == []
    for expected in ([copy / name for name in NAMES], []):
        assert intact(copy / "one")
        assert read == expected
        read.clear()


def test_a_seal_with_any_bit_turned_means_what_it_did_or_nothing(folder):
    """A changed file is never taken for the sealed one because of damage to the seal."""
    path = seal_of(folder / "one")
    whole = path.read_bytes()
    (folder / "one").write_bytes(CONTENT.upper())
    later(folder / "one")
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert not intact(folder / "one"), content


@pytest.mark.parametrize("content", ["", "{}", "[]", "1", "null", '{"one": 1}', '{"one": {}}', "{"])
def test_what_is_no_seal_seals_nothing(folder, content):
    seal_of(folder / "one").write_text(content)
    assert not intact(folder / "one")
    seal_of(folder / "one").unlink()
    assert not intact(folder / "one")
