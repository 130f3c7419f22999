"""`python -m yxanul.prepare` as a user starts it, and kills it."""

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from tokenizers import Tokenizer

from yxanul.tokenizer.superbpe import training_record

PROGRAM = ("-m", "yxanul.prepare")
KILLS = 4


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """5 MB of the standard library in 24 parquet files."""
    folder = tmp_path_factory.mktemp("text")
    sources = sorted(Path(random.__file__).parent.glob("*.py"))
    texts = [source.read_text(encoding="utf-8") for source in sources]
    for index in range(24):
        mine = [f"# {number}\n{text}" for number, text in enumerate(texts)][index::24]
        parquet.write_table(pa.table({"text": mine}), folder / f"{index:02d}.parquet", row_group_size=20)
    return folder


@pytest.fixture(scope="module")
def overrides(text, small_tokenizer) -> tuple[str, ...]:
    return (
        *("data=parquet", f"data.path={text}", "data.held_out=0.1", "data.workers=2"),
        *("tokenizer=gpt2", f"tokenizer.path={small_tokenizer.path}", "tokenizer.vocab_size=512"),
    )


@pytest.fixture(scope="module")
def prepare(train, overrides):
    """Runs the command: exit status, stdout, stderr."""
    return lambda *more, base=overrides, program=PROGRAM, **rest: train(*more, program=program, base=base, **rest)


@pytest.fixture(scope="module")
def timed(prepare, tmp_path_factory) -> tuple[Path, float]:
    """An undisturbed preparation, and the seconds that it took."""
    cache = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    status, out, err = prepare(f"data.cache={cache}")
    assert (status, err) == (0, "")
    assert "24 of 24 shards" in out and "MB/s" in out
    return cache, time.monotonic() - began


@pytest.fixture(scope="module")
def undisturbed(timed) -> Path:
    return timed[0]


def shards(cache: Path) -> dict[str, bytes]:
    """Everything prepared but the empty locks, and seals, which hold times."""
    files = [file for file in (cache / "tokens").rglob("*") if file.is_file()]
    files = [file for file in files if not file.name.endswith((".lock", ".seal.json"))]
    return {str(file.relative_to(cache)): file.read_bytes() for file in files}


def test_killed_at_random_moments_it_ends_the_same(start, prepare, overrides, timed, tmp_path):
    undisturbed, seconds = timed
    cache, kills, partial = tmp_path / "cache", 0, 0
    while kills < KILLS or not (partial or kills > 4 * KILLS):
        process = start(*overrides, f"data.cache={cache}", program=PROGRAM)
        try:
            process.wait(random.uniform(0.3, 1.2) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
            partial += cache.exists() and not list(cache.glob("tokens/*/manifest.json"))
        else:  # it was finished before: that round begins anew
            assert shards(cache) == shards(undisturbed)
            shutil.rmtree(cache)
        process.communicate()
    assert partial  # else nothing was interrupted
    assert prepare(f"data.cache={cache}")[0] == 0
    assert shards(cache) == shards(undisturbed)


def test_the_second_time_does_nothing_and_says_the_same(prepare, undisturbed):
    before = {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*")}
    status, out, _ = prepare(f"data.cache={undisturbed}")
    assert status == 0 and "24 of 24 shards" in out and "MB/s" not in out
    assert {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*")} == before


def test_a_sweep_over_shares_is_the_whole(prepare, undisturbed, tmp_path):
    sweep = ("data.part=0,1,2", "data.parts=3", f"data.cache={tmp_path}")
    status, out, err = prepare(*sweep, program=(*PROGRAM, "--multirun"), cwd=tmp_path)
    assert (status, err) == (0, "")
    assert [f"{done} of 24 shards" in out for done in (8, 16, 24)] == [True] * 3
    assert shards(tmp_path) == shards(undisturbed)


def test_two_that_start_at_once_do_no_harm(start, overrides, undisturbed, tmp_path):
    both = [start(*overrides, f"data.cache={tmp_path}", program=PROGRAM) for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert shards(tmp_path) == shards(undisturbed)


def test_training_reads_what_was_prepared(train, tiny_run, tmp_path):
    status, *_ = train(f"data.cache={tmp_path}", program=PROGRAM)
    assert status == 0
    before = shards(tmp_path)
    status, out, _ = train(f"data.cache={tmp_path}", "train.steps=2", f"hydra.run.dir={tmp_path / 'run'}")
    assert status == 0 and "tokenized" not in out
    assert shards(tmp_path) == before
    [folder] = (tmp_path / "tokens").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("plan.json", "result.json"):
        corpus = json.loads((tmp_path / "run" / name).read_text())["corpus"]
        assert [corpus[key] for key in ("tokens", "documents", "bytes", "skipped")] == [
            manifest[key] for key in ("tokens", "documents", "bytes", "skipped")
        ]


def test_bad_rows_stop_or_are_skipped_and_counted(prepare, overrides, text, tmp_path):
    data = shutil.copytree(text, tmp_path / "data")
    table = parquet.read_table(data / "03.parquet")["text"].to_pylist()
    parquet.write_table(pa.table({"text": [*table[:2], None, *table[2:]]}), data / "03.parquet")
    (data / "05.parquet").write_bytes((data / "05.parquet").read_bytes()[:-10])
    options = (f"data.path={data}", f"data.cache={tmp_path / 'cache'}")
    status, _, err = prepare(*options)
    assert status == 1 and "05.parquet: is no readable parquet file" in err and err.count("\n") == 1
    (data / "05.parquet").unlink()
    status, _, err = prepare(*options)
    assert status == 1 and err.startswith("error: 03.parquet, row 2: is null") and err.count("\n") == 1
    shutil.copy(text / "05.parquet", data)
    (data / "06.parquet").write_bytes(b"no parquet")
    status, out, err = prepare(*options, "data.on_error=skip")
    assert status == 0 and "2 rows gave no document" in out
    [*_, manifest] = (tmp_path / "cache" / "tokens").rglob("manifest.json")
    assert json.loads(manifest.read_text())["skipped"] == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_line_and_more_space_goes_on(prepare, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        status, _, err = prepare(f"data.cache={disk}")
        assert status == 1 and "the tokens take about" in err and err.count("\n") == 1
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert prepare(f"data.cache={disk}")[0] == 0
        assert shards(disk) == shards(undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_tokenizer_is_trained_by_command(prepare, text, tmp_path):
    sizes = ("tokenizer=superbpe", "tokenizer.vocab_size=3000", "tokenizer.transition=2000")
    base = ("data=parquet", f"data.path={text}", "tokenizer.train_bytes=1000000")
    status, out, _ = prepare(*sizes, f"data.cache={tmp_path}", base=base)
    assert status == 0
    [file] = tmp_path.rglob("tokenizer.json")
    assert f"tokenizer {file}" in out
    assert Tokenizer.from_file(str(file)).get_vocab_size() == 3000
    record = training_record(file.read_text())
    assert (record["kind"], record["vocab_size"], record["transition"]) == ("superbpe", 3000, 2000)
    assert 1_000_000 <= record["bytes"] < 2_000_000
