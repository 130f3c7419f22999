"""A file that holds what it should not is one line on stderr that names it, and whatever was there stays as it was."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from yxanul.data import documents

PICKLE = pickle.dumps({"weights": [1.0, 2.0]})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def the_line(outcome: tuple[int, str, str]) -> str:
    status, _, err = outcome
    assert status == 1
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


# Data


def table(**columns: pa.Array) -> Callable[[Path], None]:
    return lambda file: parquet.write_table(pa.table(columns), file)


def holding(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(content)


def truncated(file: Path) -> None:
    parquet.write_table(pa.table({"text": ["some text"] * 100}), file)
    file.write_bytes(file.read_bytes()[:-20])


DATA = {
    "empty parquet": ("bad.parquet", holding(b""), ["bad.parquet", "is no readable parquet file"]),
    "truncated parquet": ("bad.parquet", truncated, ["bad.parquet", "is no readable parquet file"]),
    "pickled parquet": ("bad.parquet", holding(PICKLE), ["bad.parquet", "is no readable parquet file"]),
    "no text": ("bad.parquet", table(body=["x"]), ["'text'", "body", "data.text_column="]),
    "numbers": ("bad.parquet", table(text=[1, 2]), ["int64", "data.text_column="]),
    "null": ("bad.parquet", table(text=["some", None]), ["bad.parquet, row 1: is null", "data.on_error=skip"]),
    "half a row": ("bad.jsonl", holding(b'{"text": "fine"}\n{"text": \n'), ["bad.jsonl, row 2", "data.on_error=skip"]),
    "a list": ("bad.jsonl", holding(b'{"text": "fine"}\n["text"]\n'), ["bad.jsonl, row 2", "is no JSON object"]),
    "a number": ("bad.jsonl", holding(b'{"text": 5}\n'), ["bad.jsonl, row 1", "is no JSON object with text"]),
    "another column": ("bad.jsonl", holding(b'{"body": "fine"}\n'), ["bad.jsonl, row 1", "under 'text'"]),
    "binary jsonl": ("bad.jsonl", holding(PICKLE), ["bad.jsonl, row 1"]),
    "latin-1": ("bad.txt", holding(b"caf\xe9"), ["bad.txt, row 1", "is not UTF-8", "data.on_error=skip"]),
    "no such kind": ("bad.csv", holding(b"text"), ["data.path=", "holds no *.parquet, *.jsonl or *.txt file"]),
    "nothing": ("bad", Path.mkdir, ["data.path=", "holds no *.parquet, *.jsonl or *.txt file"]),
    "a folder": ("bad.parquet", Path.mkdir, ["bad.parquet", "is no readable parquet file", "is a directory"]),
}


@pytest.mark.parametrize("kind", DATA)
def test_bad_data(refused, small_tokenizer, tmp_path, kind):
    name, make, says = DATA[kind]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data" / name)
    tokenizer = ("tokenizer=gpt2", f"tokenizer.path={small_tokenizer.path}", "tokenizer.vocab_size=512")
    where = (f"data.path={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}")
    line = refused("prepare", "experiment=quickstart", "data=parquet", *tokenizer, *where)
    assert [words for words in says if words not in line] == [], line
    assert list((tmp_path / "cache").rglob("*.tokens")) == []


@pytest.mark.parametrize("texts", [[], ["little", "text"]])
def test_too_little_text_to_train_a_tokenizer_on(refused, tiny_run, tmp_path, texts):
    table(text=pa.array(texts, pa.string()))(tmp_path / "little.parquet")
    line = refused("prepare", *tiny_run, f"data.path={tmp_path / 'little.parquet'}")
    assert "tokenizer.vocab_size=2048" in line and "only" in line and "merges" in line


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.txt"])
def test_bad_text_is_found_though_it_is_in_the_middle(refused, tmp_path, tiny_run, name):
    [good] = [override.removeprefix("data.path=") for override in tiny_run if override.startswith("data.path=")]
    folder = shutil.copytree(good, tmp_path / "data")
    DATA["half a row" if name == "bad.jsonl" else "latin-1"][1](folder / name)
    line = refused("train", *tiny_run, f"data.path={folder}", "hydra.run.dir=run")
    assert line.startswith(f"error: {name}, row ") and "data.on_error=skip" in line
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "result.json").exists()


def test_a_damaged_record_of_a_download(refused, tmp_path):
    folder = tmp_path / "somewhere" / "data"
    folder.mkdir(parents=True)
    (folder.parent / ".yxanul-download.json").write_text("[]")
    line = refused("prepare", "data=fineweb_edu", f"data.path={folder}")
    assert str(folder.parent / ".yxanul-download.json") in line and "is damaged" in line


def test_data_that_cannot_be_downloaded_says_why_and_how_else(command, monkeypatch):
    """The plain command on a fresh machine: the default data is not there."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    line = the_line(command("hydra.run.dir=run", base=("tracking=minimal",)))
    for words in ("Yxanul/fineweb-edu-highest-quality-2025", "data.path="):
        assert words in line


def test_a_cache_that_cannot_be_made(command, tmp_path):
    (tmp_path / "file").touch()
    line = the_line(command(f"data.cache={tmp_path / 'file' / 'cache'}", "hydra.run.dir=run"))
    assert line.startswith(f"error: data.cache={tmp_path / 'file' / 'cache'}: cannot be made (Not a directory)")


# Tokenizers


WORDS = json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []})

TOKENIZERS = {
    "missing": (None, "no such file"),
    "empty": (b"", "is no tokenizer.json"),
    "another object": (b'{"model": 1}', "is no tokenizer.json"),
    "a list": (b"[]", "is no tokenizer.json"),
    "binary": (PICKLE, "is no tokenizer.json"),
    "of words": (WORDS.encode(), "is no byte-level BPE"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_wrong_tokenizer_file(refused, tiny_run, tmp_path, kind):
    content, says = TOKENIZERS[kind]
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_bytes(content)
    line = refused("prepare", *tiny_run, f"tokenizer.path={file}")
    assert says in line and str(file) in line


def test_a_tokenizer_of_another_size(refused, tiny_run, small_tokenizer):
    line = refused("prepare", *tiny_run, f"tokenizer.path={small_tokenizer.path}")
    assert "tokenizer.vocab_size=2048" in line and "512" in line


# What a run's folder holds


NEWEST = "checkpoints/step-00000023"

RUN = {
    # file and content: what each command says of it
    ("config.yaml", b""): {"generate": "config.yaml: cannot be read", "report": "lacks keys", "train": "lacks keys"},
    ("config.yaml", b"a: [1"): {"checkpoint": "config.yaml: cannot be read", "report": "config.yaml: is damaged"},
    ("config.yaml", PICKLE): {"generate": "config.yaml: cannot be read", "train": "config.yaml: is damaged"},
    ("config.yaml", b"!!python/object/apply:os.getcwd []"): {"evaluate": "cannot be read", "report": "is damaged"},
    ("config.yaml", b"seed: 1"): {"export": "config.yaml: cannot be read", "train": "lacks data, hardware"},
    ("plan.json", b"{"): {"report": "plan.json: is damaged", "export": "plan.json: is damaged"},
    ("plan.json", b"[]"): {"report": "plan.json: is damaged (it lacks keys and values)"},
    ("result.json", b""): {"report": "result.json: is damaged", "train": "result.json: is damaged"},
    ("result.json", b"{}"): {"train": "it lacks bits_per_byte); remove it", "export": "lacks bits_per_byte"},
    ("result.json", PICKLE): {"export": "result.json: is damaged", "train": "result.json: is damaged"},
    ("metrics.jsonl", b"{\n{}\n"): {"report": "metrics.jsonl: is damaged (line 1 is no row"},
    ("metrics.jsonl", b"5\n5\n"): {"report": "metrics.jsonl: is damaged (line 1 is no row"},
    ("metrics.jsonl", b""): {"report": "no run has been evaluated yet"},
    ("tokenizer.json", PICKLE): {"generate": "tokenizer.json: is no tokenizer.json", "evaluate": "tokenizer.json"},
    (f"{NEWEST}/model.safetensors", PICKLE): {"generate": "is damaged (its hash", "checkpoint": "is damaged"},
    (f"{NEWEST}/state.json", b"[]"): {"export": "state.json is damaged (its hash does not fit)"},
    (f"{NEWEST}/manifest.json", b"{"): {"generate": "is no whole checkpoint", "evaluate": NEWEST},
    (f"{NEWEST}/manifest.json", b"[1]"): {"generate": "is no whole checkpoint"},
}

USES = {
    "generate": ("generate", "RUN", "text", "--max-new-tokens", "1"),
    "evaluate": ("evaluate", "RUN", "--bytes", "1000"),
    "export": ("export", "RUN", "--to", "new"),
    "report": ("report", "RUN", "--output", "new"),
    "checkpoint": ("checkpoint", "inspect", "RUN"),
}


def damaged(undisturbed: tuple, folder: Path, name: str, content: bytes) -> Path:
    shutil.copytree(undisturbed[1], folder)
    assert (folder / name).is_file()
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("file", "use"), [(file, use) for file in RUN for use in RUN[file]], ids=lambda part: f"{part[0]} {part[1][:9]}"
)
def test_a_damaged_run(refused, undisturbed, tiny_run, tmp_path, file, use):
    folder = damaged(undisturbed, tmp_path / "run", *file)
    before = contents(folder)
    words = USES.get(use) or ("train", *tiny_run, "hydra.run.dir=RUN", "hydra.output_subdir=null")
    line = refused(*(word.replace("RUN", str(folder)) for word in words))
    assert RUN[file][use] in line
    assert not (tmp_path / "new").exists()
    before["train.log"] = contents(folder)["train.log"]
    assert contents(folder) == before


def test_a_pickle_whose_hash_fits_is_not_read(refused, undisturbed, tmp_path):
    folder = damaged(undisturbed, tmp_path / "run", f"{NEWEST}/model.safetensors", PICKLE)
    manifest = folder / NEWEST / "manifest.json"
    hashes = json.loads(manifest.read_text()) | {"model.safetensors": hashlib.sha256(PICKLE).hexdigest()}
    manifest.write_text(json.dumps(hashes))
    line = refused("generate", str(folder), "text")
    assert f"{folder / NEWEST}: holds what is no safetensors file" in line


def test_a_configuration_that_no_run_can_have_had(refused, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed[1], tmp_path / "run")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("num_heads: 2", "num_heads: 0"))
    assert "config.yaml: cannot be read (model.num_heads=0: must be" in refused("generate", str(folder), "text")


@pytest.mark.parametrize("kind", ["nothing", "a file"])
@pytest.mark.parametrize("use", [*USES, "sweep"])
def test_what_is_no_run(refused, tmp_path, use, kind):
    folder = tmp_path / "it"
    folder.mkdir() if kind == "nothing" else folder.write_text("text")
    words = USES.get(use) or ("sweep", "status", "RUN")
    line = refused(*(word.replace("RUN", str(folder)) for word in words))
    assert line.startswith(f"error: {folder}: ") and ("no run" in line or "no s" in line)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", PICKLE])
def test_a_damaged_list_of_a_sweep(refused, tmp_path, content):
    (tmp_path / "sweep.json").write_bytes(content)
    for command in ("status", "wait", "logs", "cancel"):
        assert f"{tmp_path / 'sweep.json'}: is damaged" in refused("sweep", command, str(tmp_path))


@pytest.mark.parametrize("name", ["launcher.json", "one/plan.json", "one/outcome.json"])
def test_a_damaged_record_of_a_sweep(refused, tmp_path, name):
    (tmp_path / "one").mkdir()
    (tmp_path / "sweep.json").write_text('{"runs": {"one": "seed=1"}}')
    (tmp_path / name).write_text("{")
    assert f"{tmp_path / name}: is damaged" in refused("sweep", "status", str(tmp_path))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": b"{", "model.safetensors": b""}, "config.json: cannot be read"),
        ({"config.json": b"{}", "pytorch_model.bin": PICKLE}, "holds no *.safetensors; pickled weights"),
        ({"config.json": b"{}", "model.safetensors": PICKLE}, "says no length of the context"),
        ({"config.json": b'{"n_positions": 8}', "model.safetensors": PICKLE}, "transformers cannot read it"),
    ],
)
def test_a_bad_hugging_face_folder(refused, tmp_path, files, says):
    pytest.importorskip("transformers", reason="needs transformers: pip install 'yxanul[export]'")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    line = refused("evaluate", str(tmp_path))
    assert says in line and str(tmp_path) in line


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_where_nothing_can_be_written(refused, undisturbed, tmp_path, where):
    (tmp_path / "file").write_text("mine")
    to = str(tmp_path / where)
    for words in (("export", "RUN", "--to", to), ("checkpoint", "average", "RUN", "--last", "2", "--to", to)):
        assert to in refused(*(word.replace("RUN", str(undisturbed[1])) for word in words))
    assert "hydra.run.dir=" in refused("train", "experiment=quickstart", f"hydra.run.dir={to}")
    assert "output=" in refused("benchmark", "experiment=quickstart", f"output={to}")
    assert contents(tmp_path) == {"file": b"mine"}


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


def test_a_checkpoint_to_resume_from_that_is_none(refused, tiny_run, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused("train", *tiny_run, f"resume_from_checkpoint={tmp_path / 'empty'}", "hydra.run.dir=run")
    assert f"{tmp_path / 'empty'}: is no whole checkpoint" in line


def test_an_error_of_ours_keeps_its_traceback(command, monkeypatch):
    """A bug must not look like a mistake of the user's."""

    def broken(data):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(documents, "open_source", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        command("hydra.run.dir=run")
