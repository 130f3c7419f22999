"""Readers: what comes out is what was put in, in a fixed order, and bad files are one clear line."""

import json
import os
import random
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yxanul.config import DataConfig, DataKind, OnError
from yxanul.data import documents
from yxanul.data.documents import Skipped, open_source, source_fingerprint, unit_hash
from yxanul.errors import ConfigError, UserError

TEXTS = ["one", "", "two\nlines", "naïve 🇩🇪 \x00 \r\n", None, "four"]
KEPT = [text for text in TEXTS if text]


def data_config(path, **changes) -> DataConfig:
    values = {
        "kind": DataKind.files,
        "path": str(path),
        "text_column": "text",
        "cache": "",
        "held_out": 0.1,
        "held_out_path": None,
        "repo": None,
        "revision": None,
        "files": None,
        "expected_files": None,
        "on_error": OnError.stop,
        "workers": None,
        "part": 0,
        "parts": 1,
    }
    return DataConfig(**(values | changes))


def read_all(path, **changes) -> list[str | Skipped]:
    return [row for part in open_source(data_config(path, **changes)) for row in part.documents()]


def read_texts(path, **changes) -> list[str]:
    return [row for row in read_all(path, **changes) if isinstance(row, str)]


def write_parquet(path: Path, texts, type_=None, row_group_size=2, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": pa.array(range(len(texts))), "text": pa.array(texts, type_ or pa.string()), **columns})
    parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Parquet


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string()])
def test_parquet_gives_its_texts(tmp_path, type_):
    file = write_parquet(tmp_path / "a.parquet", TEXTS, type_)
    assert read_texts(file) == KEPT


def test_a_null_is_told_with_its_row(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", ["x", None, "", None, "y"])
    nulls = [Skipped("a.parquet", row, "is null") for row in (1, 3)]
    assert read_all(file) == ["x", nulls[0], nulls[1], "y"]


def test_only_the_text_is_read_and_not_before_it_is_asked_for(tmp_path, monkeypatch):
    file = write_parquet(tmp_path / "a.parquet", [f"text {n}" for n in range(10)], row_group_size=4)
    reads = []
    real = parquet.ParquetFile.iter_batches

    def spy(self, *arguments, row_groups, columns, **rest):
        reads.append((row_groups, columns))
        return real(self, *arguments, row_groups=row_groups, columns=columns, **rest)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spy)
    [part] = open_source(data_config(file))
    assert not reads
    stream = part.documents()
    assert [next(stream) for _ in range(4)] == [f"text {n}" for n in range(4)]
    assert reads == [([0], ["text"])]
    assert list(stream) == [f"text {n}" for n in range(4, 10)]
    assert reads == [([group], ["text"]) for group in range(3)]
    assert list(part.documents()) == [f"text {n}" for n in range(10)]


@pytest.mark.parametrize("part_bytes", [1, 150, 10**9])
def test_a_large_file_is_divided_between_row_groups(tmp_path, monkeypatch, part_bytes):
    texts = [f"text {n} " * 9 for n in range(100)]
    file = write_parquet(tmp_path / "a.parquet", [*texts[:50], None, *texts[51:]], row_group_size=7)
    monkeypatch.setattr(documents, "PART_BYTES", part_bytes)
    parts = open_source(data_config(file))
    assert len(parts) == {1: 15, 10**9: 1}.get(part_bytes, len(parts))
    assert len({part.name for part in parts}) == len({part.fingerprint for part in parts}) == len(parts)
    assert read_all(file) == [*texts[:50], Skipped("a.parquet", 50, "is null"), *texts[51:]]


def test_memory_is_bounded_whatever_the_row_group(tmp_path):
    """400 MB of text in one row group, read in a process of its own."""
    file = write_parquet(tmp_path / "a.parquet", [f"{n} " * 10_000 for n in range(10_000)], row_group_size=10_000)
    code = f"""
import resource
from pathlib import Path
from yxanul.data.documents import parquet_documents
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = sum(map(len, parquet_documents(Path({str(file)!r}), "a", "text", 0, 1)))
print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    size, memory = map(int, done.stdout.split())
    assert size > 400_000_000 > 2 * memory


def test_another_column_can_be_named(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", ["x"], body=pa.array(["the body"]))
    assert read_all(file, text_column="body") == ["the body"]


@pytest.mark.parametrize("keep", [0, 1, 4, 100, -1, -4, -8, -40])
def test_an_empty_or_truncated_parquet_is_refused_before_anything_is_read(tmp_path, keep):
    write_parquet(tmp_path / "a.parquet", ["good"])
    bad = write_parquet(tmp_path / "b.parquet", [f"text {n}" for n in range(100)])
    bad.write_bytes(bad.read_bytes()[:keep])
    with pytest.raises(UserError) as error:
        open_source(data_config(tmp_path))
    assert one_line(error).startswith(f"{bad}: ")
    assert "download it again or remove it" in str(error.value)
    good, skipped = read_all(tmp_path, on_error=OnError.skip)
    assert good == "good" and skipped.file == "b.parquet" and "no readable parquet file" in skipped.reason


def test_a_parquet_damaged_inside_is_refused_when_it_is_read(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", [f"text {n}" * 20 for n in range(100)], row_group_size=100)
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    file.write_bytes(content)
    [part] = open_source(data_config(file))
    *texts, skipped = part.documents()
    assert texts == [f"text {n}" * 20 for n in range(len(texts))]
    assert skipped.row == len(texts) and "are damaged" in skipped.reason


def test_what_follows_a_damaged_row_group_is_read(tmp_path):
    texts = [str(random.Random(n).random()) * 20 for n in range(100)]
    file = write_parquet(tmp_path / "a.parquet", texts, row_group_size=25)
    with parquet.ParquetFile(file) as table:
        column = table.metadata.row_group(1).column(1)
    content = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(content)
    rows = read_all(file)
    [skipped] = [row for row in rows if isinstance(row, Skipped)]
    assert [row for row in rows if isinstance(row, str)] == texts[:25] + texts[50:]
    assert skipped.row == 25 and skipped.reason.startswith("it and the 24 rows after it in row group 1 are damaged")


def test_a_parquet_text_that_is_no_utf8_is_told_with_its_row(tmp_path):
    binary = pa.array([b"fine", b"\xff\xfe", None, b"fine too"])
    text = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
    parquet.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    first, bad, null, last = read_all(tmp_path)
    assert (first, last) == ("fine", "fine too")
    assert bad.row == 1 and bad.reason.startswith("is not UTF-8")
    assert null == Skipped("a.parquet", 2, "is null")


def test_a_parquet_without_text_names_the_columns_that_it_has(tmp_path):
    parquet.write_table(pa.table({"body": ["a"], "url": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError) as error:
        open_source(data_config(tmp_path))
    for piece in ("a.parquet", "'text'", "body, url", "data.text_column="):
        assert piece in one_line(error)


@pytest.mark.parametrize("type_", [pa.int64(), pa.float32(), pa.binary(), pa.list_(pa.string()), pa.null()])
def test_a_column_of_another_type_is_refused(tmp_path, type_):
    write_parquet(tmp_path / "a.parquet", [None], type_)
    with pytest.raises(UserError) as error:
        open_source(data_config(tmp_path))
    assert f"holds {type_}".partition("<")[0] in one_line(error) and "data.text_column=" in str(error.value)


# JSON lines


@given(texts=st.lists(st.text()), ascii_only=st.booleans())
def test_jsonl_gives_its_texts(tmp_path_factory, texts, ascii_only):
    file = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    lines = [json.dumps({"n": n, "text": text}, ensure_ascii=ascii_only) for n, text in enumerate(texts)]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert read_texts(file) == [text for text in texts if text]


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"a\ud800b", "a?b"),
        (r"\udc00", "?"),
        (r"\ud83d\ude00", "😀"),
        (r"\ude00\ud83d x", "?? x"),
    ],
)
def test_lone_surrogates_are_no_text_and_pairs_are(tmp_path, escaped, text):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{escaped}"}}')
    assert read_all(tmp_path) == [text]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b'{"body": "x"}',
        b'["text"]',
        b'"text"',
        b"null",
        b"",
        b'{"text": 5}',
        b'{"text": ["x"]}',
        b'{"text": "\xff"}',
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "fine"}\n{"text": null}\n' + line + b'\n{"text": "fine"}\n')
    before, null, bad, after = read_all(tmp_path)
    assert (before, after) == ("fine", "fine")
    assert null == Skipped("a.jsonl", 2, "is null")
    assert (bad.file, bad.row) == ("a.jsonl", 3) and ("'text'" in bad.reason or "UTF-8" in bad.reason)


# Text files


def documents_by_lines(text: str) -> list[str]:
    """The definition: lines that hold only the marker divide, and empty documents are none."""
    found, lines = [], []
    for line in [*text.split("\n"), "<|endoftext|>"]:
        if line == "<|endoftext|>":
            found.append("\n".join(lines))
            lines = []
        else:
            lines.append(line)
    return [document for document in found if document]


@given(lines=st.lists(st.sampled_from(["<|endoftext|>", "", "a", "b c", " <|endoftext|>", "x<|endoftext|>"])))
def test_text_is_divided_by_lines_that_hold_only_the_marker(tmp_path_factory, lines):
    file = tmp_path_factory.mktemp("txt") / "a.txt"
    file.write_text("\n".join(lines))
    assert read_all(file) == documents_by_lines("\n".join(lines))


def test_text_keeps_every_character_between_the_markers(tmp_path):
    (tmp_path / "a.txt").write_text("\n one\n\n<|endoftext|>\n\ttwo <|endoftext|> é\n<|endoftext|>\n three\n")
    assert read_all(tmp_path) == ["\n one\n", "\ttwo <|endoftext|> é", " three\n"]


@pytest.mark.parametrize("content", [b"caf\xe9", "text".encode("utf-16"), b"fine\n" * 1000 + b"\x80"])
def test_text_that_is_no_utf8_is_told_with_its_number(tmp_path, content):
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\n<|endoftext|>\n" + content + b"\n<|endoftext|>\nthree")
    one, bad, three = read_all(tmp_path)
    assert (one, three) == ("one", "three")
    assert (bad.file, bad.row) == ("a.txt", 2) and bad.reason.startswith("is not UTF-8")


# Folders


def test_a_folder_gives_its_files_in_the_order_of_their_paths(tmp_path):
    write_parquet(tmp_path / "b" / "two.parquet", ["2"])
    write_parquet(tmp_path / "a.parquet", ["1"])
    (tmp_path / "b" / "three.txt").write_text("3")
    (tmp_path / "c.jsonl").write_text('{"text": "4"}\n')
    (tmp_path / "README.md").write_text("no data")
    parts = open_source(data_config(tmp_path))
    assert [part.name for part in parts] == ["a.parquet", "b/three.txt", "b/two.parquet", "c.jsonl"]
    assert read_all(tmp_path) == ["1", "3", "2", "4"]


@pytest.mark.parametrize("of", ["inner", "inner/b.txt"], ids=["folder", "file"])
def test_what_is_held_out_by_its_path_is_not_trained_on(tmp_path, of):
    (tmp_path / "inner").mkdir()
    for name in ("a.txt", "inner/b.txt"):
        (tmp_path / name).write_text(name)
    parts = open_source(data_config(tmp_path, held_out_path=str(tmp_path / of)))
    assert [part.name for part in parts] == ["a.txt"]


def test_a_missing_held_out_path_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"^data\.held_out_path=not/here: no such file") as error:
        open_source(data_config(tmp_path, held_out_path="not/here"))
    assert "\n" not in str(error.value)


def test_fingerprints_change_with_the_file_and_with_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("text")
    before = source_fingerprint(open_source(data_config(tmp_path)))
    assert source_fingerprint(open_source(data_config(tmp_path))) == before
    stat = file.stat()
    file.write_text("longer text")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    longer = source_fingerprint(open_source(data_config(tmp_path)))
    file.write_text("test")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    rewritten = source_fingerprint(open_source(data_config(tmp_path)))
    (tmp_path / "b.txt").write_text("more")
    assert len({before, longer, rewritten, source_fingerprint(open_source(data_config(tmp_path)))}) == 4


@pytest.mark.parametrize("repo", ["some/data", None])
def test_a_missing_folder_says_what_it_is_and_what_runs_without(tmp_path, repo):
    with pytest.raises(ConfigError) as error:
        open_source(data_config(tmp_path / "none", repo=repo))
    message = one_line(error)
    assert message.startswith(f"data.path={tmp_path / 'none'}: ")
    assert "experiment=quickstart" in message
    assert ("it is some/data on the Hugging Face hub" in message) == (repo is not None) and "None" not in message


@pytest.mark.parametrize("name", [None, "README.md", "data.csv"])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_path_with_nothing_readable_is_refused(tmp_path, name, as_file):
    if name:
        (tmp_path / name).write_text("x")
    path = tmp_path / name if name and as_file else tmp_path
    with pytest.raises(ConfigError) as error:
        open_source(data_config(path))
    assert one_line(error).startswith(f"data.path={path}: holds no ")


# The standard library


STDLIB = data_config("", kind=DataKind.stdlib)


def test_the_standard_library_is_the_same_twice():
    first, second = open_source(STDLIB), open_source(STDLIB)
    assert len(first) == documents.STDLIB_PARTS
    assert [(part.name, part.fingerprint) for part in first] == [(part.name, part.fingerprint) for part in second]
    assert list(first[0].documents()) == list(second[0].documents())


def test_the_standard_library_is_its_modules_without_tests(tmp_path, monkeypatch):
    kept = {"a.py": b"a", "pkg/m.py": b"caf\xe9", "pkg/testing.py": b"no test", "empty.py": b"", "z.py": b"a"}
    left_out = ["test/x.py", "pkg/tests/y.py", "idlelib/idle_test/z.py", "site-packages/n.py", "pkg/data.txt"]
    for name, content in {**kept, **dict.fromkeys(left_out, b"left out")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    parts = open_source(STDLIB)
    texts = Counter(text for part in parts for text in part.documents())
    assert texts == {"a": 2, "caf": 1, "no test": 1}
    before = [part.fingerprint for part in parts]
    (tmp_path / "a.py").write_text("changed")
    after = [part.fingerprint for part in open_source(STDLIB)]
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


# What is held out


@given(st.text())
def test_the_hash_is_a_share_and_depends_on_the_text_alone(text):
    assert 0 <= unit_hash(text) < 1
    assert unit_hash(text) == unit_hash("".join(list(text)))


def test_the_hash_is_even():
    hashes = [unit_hash(f"document {n}") for n in range(4000)]
    for share in (0.03, 0.25, 0.5, 0.9):
        found = sum(value < share for value in hashes)
        assert abs(found - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5
