import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from yxanul.errors import UserError
from yxanul.tracking import Record, read_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def write(path: Path, steps: range) -> None:
    record = Record(path)
    for step in steps:
        record.append({"kind": "train", "step": step, "loss": 1.5})
    record.close()


def test_rows_come_back_in_order(path):
    write(path, range(1, 4))
    write(path, range(4, 6))
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5]
    assert read_rows(path)[0] == {"kind": "train", "step": 1, "loss": 1.5}


def test_non_finite_floats_become_null(path):
    record = Record(path)
    record.append({"step": 1, "nan": float("nan"), "inf": float("inf"), "low": -float("inf")})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "nan": None,
        "inf": None,
        "low": None,
    }


def test_a_row_without_a_step_is_refused(path):
    with pytest.raises(ValueError, match="step"):
        Record(path).append({"kind": "event", "message": "lost"})


def test_an_unwritable_row_leaves_no_trace(path):
    record = Record(path)
    record.append({"step": 1})
    with pytest.raises(TypeError):
        record.append({"step": 2, "loss": object()})
    assert read_rows(path) == [{"step": 1}]


def test_a_killed_process_has_lost_nothing_that_it_appended(path):
    script = (
        "import os, signal, sys; from pathlib import Path; from yxanul.tracking import Record\n"
        "record = Record(Path(sys.argv[1]))\n"
        "for step in range(1, 101): record.append({'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_rows(path)] == list(range(1, 101))


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3, "text": "\xc3', b"\0\0\0\0"])
def test_a_torn_last_line_is_no_row_and_spoils_no_later_one(path, torn):
    write(path, range(1, 3))
    with path.open("ab") as file:
        file.write(torn)
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    write(path, range(3, 5))
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]


def test_a_whole_last_line_counts_even_without_its_newline(path):
    write(path, range(1, 3))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(path, range(3, 4))
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


def test_damage_before_the_last_line_is_named_not_hidden(path):
    path.parent.mkdir()
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: is damaged \(line 2"):
        read_rows(path)


def test_truncation_keeps_the_rows_up_to_the_step_to_the_byte(path):
    path.parent.mkdir()
    kept = b'{"step":1,  "kind": "train"}\n{"kind": "eval", "step": 1}\n'
    path.write_bytes(kept + b'{"step": 2}\n{"step": 3}\n{"st')
    record = Record(path)
    record.truncate_after(1)
    assert path.read_bytes() == kept
    record.append({"step": 2})
    record.truncate_after(2)
    assert path.read_bytes() == kept + b'{"step": 2}\n'
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_truncating_an_open_record_lets_it_go_on(path):
    record = Record(path)
    for step in (1, 2, 3):
        record.append({"step": step})
    record.truncate_after(1)
    record.append({"step": 2, "again": True})
    assert read_rows(path) == [{"step": 1}, {"step": 2, "again": True}]


def test_a_truncation_that_fails_changes_nothing(path, monkeypatch):
    write(path, range(1, 4))
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="on fire"):
        Record(path).truncate_after(1)
    assert path.read_bytes() == before


def test_truncating_no_file_is_nothing(path):
    Record(path).truncate_after(0)
    assert not path.exists()
