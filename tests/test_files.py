"""Files are there whole or not at all, whatever happens while they are written."""

import json
import os

import pytest

from yxanul.files import atomic_path, sync, write_json


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with atomic_path(target) as path:
        path.write_text("whole")
        assert path.parent == target.parent  # on the same disk, or the rename would be a copy
        assert not target.exists()
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_content_and_no_litter(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half():
        with atomic_path(target) as path:
            path.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_error_before_anything_is_written_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "file.txt"):
        _ = 1 / 0
    assert not os.listdir(tmp_path)


def test_the_content_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), real_fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), real_replace(*paths)))
    with atomic_path(tmp_path / "file.txt") as path:
        path.write_text("whole")
    assert calls[:2] == ["fsync", "replace"]


def test_json_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "value.json"
    write_json(target, {"old": [1, 2]})
    with pytest.raises(TypeError):
        write_json(target, {"new": object()})
    assert json.loads(target.read_text()) == {"old": [1, 2]}
    write_json(target, {"text": "naïve\n", "none": None})
    assert json.loads(target.read_text()) == {"text": "naïve\n", "none": None}
    assert target.read_text().endswith("}\n")


def test_sync_takes_files_and_folders(tmp_path):
    (tmp_path / "file").write_text("x")
    sync(tmp_path / "file")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "none")
