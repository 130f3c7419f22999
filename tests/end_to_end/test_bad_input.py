"""Bad input is one line on stderr, exit status 1, and whatever was there stays as it was."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from yxanul.data import documents


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def the_line(outcome: tuple[int, str, str]) -> str:
    status, _, err = outcome
    assert status == 1
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


# Data


def truncated(file: Path) -> None:
    parquet.write_table(pa.table({"text": ["some text"] * 100}), file)
    file.write_bytes(file.read_bytes()[:-20])


BAD_DATA = {
    "empty": (lambda file: file.write_bytes(b""), ["bad.parquet", "is no readable parquet file"]),
    "truncated": (truncated, ["bad.parquet", "is no readable parquet file"]),
    "no text": (
        lambda file: parquet.write_table(pa.table({"body": ["x"]}), file),
        ["'text'", "body", "data.text_column="],
    ),
    "numbers": (lambda file: parquet.write_table(pa.table({"text": [1, 2]}), file), ["int64", "data.text_column="]),
    "no rows": (
        lambda file: parquet.write_table(pa.table({"text": pa.array([], pa.string())}), file),
        ["tokenizer.vocab_size=2048", "only 0 merges"],
    ),
    "little": (
        lambda file: parquet.write_table(pa.table({"text": ["little", "text"]}), file),
        ["tokenizer.vocab_size=2048"],
    ),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_parquet(command, tmp_path, kind):
    make, says = BAD_DATA[kind]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data" / "bad.parquet")
    line = the_line(command(f"data.path={tmp_path / 'data'}", "hydra.run.dir=run"))
    for words in says:
        assert words in line
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.txt"])
def test_bad_text_is_found_though_it_is_in_the_middle(command, tmp_path, tiny_run, name):
    [good] = [override.removeprefix("data.path=") for override in tiny_run if override.startswith("data.path=")]
    folder = shutil.copytree(good, tmp_path / "data")
    content = {"bad.jsonl": b'{"text": "fine"}\n{"text": \n', "bad.txt": b"caf\xe9"}[name]
    (folder / name).write_bytes(content)
    line = the_line(command(f"data.path={folder}", "hydra.run.dir=run"))
    assert line.startswith(f"error: {name}, row ") and "data.on_error=skip" in line


def test_data_that_cannot_be_downloaded_says_why_and_how_else(command, monkeypatch):
    """The plain command on a fresh machine: the default data is not there."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    line = the_line(command("hydra.run.dir=run", base=("tracking=minimal",)))
    for words in ("Yxanul/fineweb-edu-highest-quality-2025", "data.path="):
        assert words in line


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("x")], ids=["empty folder", "odd file"])
def test_nothing_readable(command, tmp_path, make):
    make(tmp_path / "data")
    assert "holds no *.parquet" in the_line(command(f"data.path={tmp_path / 'data'}", "hydra.run.dir=run"))


def test_a_cache_that_cannot_be_made(command, tmp_path):
    (tmp_path / "file").touch()
    line = the_line(command(f"data.cache={tmp_path / 'file' / 'cache'}", "hydra.run.dir=run"))
    assert line.startswith(f"error: data.cache={tmp_path / 'file' / 'cache'}: cannot be made (Not a directory)")


# Tokenizers


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("", "is no tokenizer.json"),
        ('{"model": 1}', "is no tokenizer.json"),
    ],
)
def test_a_wrong_tokenizer_file(command, tmp_path, content, says):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    line = the_line(command(f"tokenizer.path={tmp_path / 'tokenizer.json'}", "hydra.run.dir=run"))
    assert says in line and str(tmp_path / "tokenizer.json") in line


def test_a_tokenizer_of_another_size(command, small_tokenizer):
    line = the_line(command(f"tokenizer.path={small_tokenizer.path}", "hydra.run.dir=run"))
    assert "tokenizer.vocab_size=2048" in line and "512" in line


# What one key says against another


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("model.num_heads=5",), "model.num_heads=5"),
        (("model.num_kv_heads=3", "model.num_heads=4"), "model.num_kv_heads=3"),
        (("curriculum.max_seq_len=null",), "seq_len"),
        (("curriculum.stages.0.share=0.5",), "shares"),
        (("hardware.micro_batch.128=0",), "hardware.micro_batch.128=0"),
        (("train.tokens=10",), "train.tokens=10"),
        (("checkpoint.every=0",), "checkpoint.every=0"),
        (("precision=fp8", "precision.fallback=error", "hardware=cpu"), "FP8 cannot run: a CPU has no FP8 units"),
        (("precision=fp8", "precision.select=some"), "precision.select=some: must be all, timed, or a list"),
    ],
)
def test_combinations_that_cannot_work(command, tmp_path, overrides, says):
    assert says in the_line(command(*overrides, "hydra.run.dir=run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# Checkpoints


def test_a_damaged_checkpoint_in_a_real_process(train, unfinished):
    newest = max((unfinished / "checkpoints").glob("step-*"))
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[len(content) // 3] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    before = contents(unfinished)
    status, _, err = train(f"hydra.run.dir={unfinished}")
    line = the_line((status, "", err))
    assert str(newest) in line and "optimizer.safetensors is damaged" in line
    after = contents(unfinished)
    kept = [name for name in before if not name.startswith(".hydra")]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.parametrize("path", ["none", "empty"])
def test_a_checkpoint_to_resume_from_that_is_none(command, tmp_path, path):
    (tmp_path / "empty").mkdir()
    line = the_line(command(f"resume_from_checkpoint={tmp_path / path}", "hydra.run.dir=run"))
    assert str(tmp_path / path) in line and "is no whole checkpoint" in line


def test_an_error_of_ours_keeps_its_traceback(command, monkeypatch):
    """A bug must not look like a mistake of the user's."""

    def broken(data):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(documents, "open_source", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        command("hydra.run.dir=run")
