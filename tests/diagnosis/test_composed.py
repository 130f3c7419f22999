"""What the doctor finds of a composed run: only what stops it is a problem."""

import errno
import json
import os
import shutil
import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from yxanul.data import preparation
from yxanul.diagnosis import composed
from yxanul.diagnosis.diagnose import diagnose
from yxanul.diagnosis.findings import BROKEN, State, problems

from .pretence import of, raising, said, the_problem

# The run


def test_a_gpu_that_does_not_answer_is_a_problem_only_for_those_who_use_it(look, gpu, monkeypatch):
    gpu()
    lost = RuntimeError("CUDA error: the GPU is lost\nmore of it")
    monkeypatch.setattr(torch.cuda, "get_device_properties", raising(lost))
    monkeypatch.setattr(composed, "try_device", lambda device: raising(lost)() if device.type == "cuda" else None)
    line = "RuntimeError: CUDA error: the GPU is lost; mend that, or choose hardware=cpu"
    assert the_problem(look("hardware.memory_gb=8")) == line
    findings = look("hardware.device=cpu")
    assert problems(findings) == []
    assert said(findings, "GPU", "cuda:0") == ("info", "does not answer (CUDA error: the GPU is lost)")


def test_the_device_is_tried():
    composed.try_device(torch.device("cpu"))
    with pytest.raises(BROKEN):
        composed.try_device(torch.device("cuda", 99))


def test_a_cuda_device_that_is_named_and_not_here(look, gpu):
    findings = look("hardware=h100")
    assert the_problem(findings).startswith("hardware.device=cuda: there is no CUDA device here")
    assert of(findings, "run", "hardware.device").state is State.problem
    gpu()
    assert problems(look("hardware=h100")) == []


def test_precision(look, gpu):
    assert said(look(), "run", "computes in") == ("ok", "fp32")
    gpu(8.0)
    assert said(look("precision=bf16"), "run", "computes in") == ("ok", "bf16")
    state, words = said(look("precision=fp8"), "run", "computes in")
    assert state == "info" and words.startswith("bf16; not in FP8: compute capability 8.0")
    assert the_problem(look("precision=fp8", "precision.fallback=error")).startswith("precision.fallback=error: ")
    gpu(9.0)
    assert problems(look("precision=fp8", "precision.fallback=error", "precision.backend=scaled_mm")) == []


def test_kernels(look, gpu, monkeypatch):
    assert said(look(), "run", "attention") == ("ok", "auto; there are sdpa")
    assert said(look(), "run", "cross_entropy") == ("ok", "auto; there are chunked, plain")
    findings = look("attention=flash", "cross_entropy=liger")
    assert [problem.words.partition(": ")[0] for problem in problems(findings)] == [
        "attention=flash",
        "cross_entropy=liger",
    ]
    assert "attention=auto or one of sdpa" in problems(findings)[0].words
    gpu(9.0)
    assert "varlen" in said(look("precision=bf16"), "run", "attention")[1]
    assert problems(look("precision=bf16", "attention=varlen")) == []


def test_a_library_that_is_installed_and_broken(look, gpu, monkeypatch):
    gpu(9.0)
    monkeypatch.setattr(composed, "attentions", raising(ImportError("undefined symbol: _ZN3c104cuda")))
    assert the_problem(look()) == "ImportError: undefined symbol: _ZN3c104cuda; mend that, or choose hardware=cpu"


def test_plan(look):
    state, words = said(look(), "run", "plan")
    assert state == "ok" and " steps, " in words and " GiB" in words
    assert the_problem(look("train.tokens=10")).startswith("train.tokens=10: ")
    assert the_problem(look("hardware.memory_gb=0.001")).startswith("one sequence of 32 tokens takes about ")


def test_where_it_begins(look, tmp_path):
    assert said(look(), "run", "begins") == ("ok", "anew")
    assert "is no whole checkpoint" in the_problem(look(f"resume_from_checkpoint={tmp_path}"))
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    whole, damaged = (
        tmp_path / "outputs" / "run" / "checkpoints" / name for name in ("step-00000001", "step-00000002")
    )
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256 of nothing
    for folder in (whole, damaged):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
        (folder / "manifest.json").write_text(json.dumps(dict.fromkeys(names, empty)))
    (damaged / "model.safetensors").write_text("x")
    assert "model.safetensors is damaged" in the_problem(look())
    shutil.rmtree(damaged)
    assert said(look(), "run", "begins") == ("ok", f"at {whole}")
    (tmp_path / "outputs" / "run" / "result.json").touch()
    assert said(look(), "run", "begins")[1].endswith("is finished")


# Its text


def test_the_standard_library_is_made(compose, tmp_path):
    findings = diagnose(compose("experiment=quickstart", f"data.cache={tmp_path / 'cache'}"), tmp_path / "run")
    assert problems(findings) == []
    state, words = said(findings, "text", "data")
    assert state == "ok" and words.startswith("made from the standard library") and " MB" in words
    assert said(findings, "text", "tokenizer") == ("info", "would be trained on 3.0 MB of the data")
    assert said(findings, "text", "tokens")[1].startswith("8 of 8 shards would be made, about 6.")


def test_files(look, tmp_path):
    state, words = said(look(), "text", "data")
    assert state == "ok" and words.startswith("4 files, ") and " kB, at " in words
    state, words = said(look("data.expected_files=5"), "text", "data")
    assert state == "info" and words.startswith("4 of 5 files")
    missing = look(f"data.path={tmp_path / 'none'}")
    assert "no such file or folder" in the_problem(missing) and "experiment=quickstart" in the_problem(missing)
    assert said(missing, "text", "tokens") == ("info", "would be made once the data is here")
    (tmp_path / "bad.parquet").write_text("x")
    assert "is no readable parquet file" in the_problem(look(f"data.path={tmp_path}"))


def test_files_to_download(look, monkeypatch, tmp_path):
    wanted = ("data=fineweb_edu", f"data.path={tmp_path / 'text' / 'data'}")
    findings = look(*wanted)
    state, words = said(findings, "text", "data")
    assert state == "info" and "would be downloaded from Yxanul/fineweb-edu" in words and problems(findings) == []
    assert said(findings, "text", "tokens") == ("info", "would be made once the data is here")
    assert "no such file" in the_problem(look("data=fineweb_edu", f"data.path={tmp_path / 'copy'}")), "the user's own"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in the_problem(look(*wanted))


def test_a_download_that_is_begun(look, monkeypatch, tmp_path):
    wanted = ("data=fineweb_edu", f"data.path={tmp_path / 'text' / 'data'}", "data.files=data/*.txt")
    (tmp_path / "text" / "data").mkdir(parents=True)
    (tmp_path / "text" / "data" / "a.txt").write_text("some text")
    record = {"repo": "Yxanul/fineweb-edu", "asked": None, "revision": "c0ffee", "pattern": "data/*.txt"}
    files = {"data/a.txt": {"size": 9, "sha256": None}, "data/b.txt": {"size": 2_000_000_000, "sha256": None}}
    (tmp_path / "text" / ".yxanul-download.json").write_text(json.dumps(record | {"files": files}))
    state, words = said(look(*wanted), "text", "data")
    assert state == "info" and words.startswith("1 of 2 files, 2.0 GB, would be downloaded")
    line = f"data.path={tmp_path / 'text'}: the files take 2.0 GB, 1.9 GB free; make room there, or name another folder"
    with monkeypatch.context() as little:
        little.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_900_000_000))
        assert the_problem(look(*wanted)) == line
    del files["data/b.txt"]
    (tmp_path / "text" / ".yxanul-download.json").write_text(json.dumps(record | {"files": files}))
    assert said(look(*wanted, "data.expected_files=1"), "text", "data")[0] == "ok"
    (tmp_path / "text" / ".yxanul-download.json").write_text("{")
    assert "is damaged" in the_problem(look(*wanted))


def test_the_tokenizer(look, small_tokenizer, monkeypatch, tmp_path):
    fresh = look(f"data.cache={tmp_path}")
    assert said(fresh, "text", "tokenizer") == ("info", "would be trained on 300.0 kB of the data")
    published = ("tokenizer=gpt2", "tokenizer.vocab_size=512")
    assert said(look(*published), "text", "tokenizer")[1].startswith("would be downloaded from ")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in the_problem(look(*published))
    here = (*published, f"tokenizer.path={small_tokenizer.path}")
    assert said(look(*here), "text", "tokenizer") == ("ok", str(small_tokenizer.path))
    assert "tokenizer.vocab_size=2000" in the_problem(look(*here, "tokenizer.vocab_size=2000"))
    assert "no such file" in the_problem(look(*published, f"tokenizer.path={tmp_path / 'none'}"))


def test_a_tokenizer_of_the_hub_that_is_here(look, small_tokenizer, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda **_: str(small_tokenizer.path))
    findings = look("tokenizer=gpt2", "tokenizer.vocab_size=512")
    assert said(findings, "text", "tokenizer") == ("ok", str(small_tokenizer.path))


def test_what_is_prepared(look, change, tmp_path):
    small = ("tokenizer=bpe8k", "tokenizer.vocab_size=512", "tokenizer.train_bytes=20000", f"data.cache={tmp_path}")
    state, words = said(look(*small), "text", "tokens")
    assert state == "info" and words.startswith("4 of 4 shards would be made, about ")
    config = change(*small)
    tokenizer, corpus = preparation.prepare_text(config.data, config.tokenizer, Console(quiet=True))
    assert said(look(*small), "text", "tokenizer") == ("ok", str(tokenizer.path))
    assert said(look(*small), "text", "tokens") == ("ok", f"prepared in {corpus.folder}")
    (corpus.folder / "00002.json").unlink()
    assert said(look(*small), "text", "tokens")[1].startswith("1 of 4 shards would be made")


# Where it writes


def test_a_full_disk(look, tmp_path, monkeypatch):
    fresh = f"data.cache={tmp_path / 'cache'}"
    state, words = said(look(fresh), "disk", "run")
    assert state == "ok" and words.startswith("3 checkpoints take up to ") and "GB free in" in words
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    line = f"hydra.run.dir={tmp_path / 'outputs' / 'run'}: 3 checkpoints take up to "
    found = the_problem(look(fresh))
    assert found.startswith(line) and found.endswith("make room there, or name another folder")
    held = tmp_path / "outputs" / "run" / "checkpoints" / ".step-00000001.tmp"
    held.mkdir(parents=True)
    with (held / "model.safetensors").open("wb") as file:
        file.truncate(10**9)
    assert problems(look(fresh)) == [], "what is there already needs no room"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert the_problem(look(fresh)).startswith("data.cache="), "there is no room for the tokens"


def test_a_folder_that_cannot_be_written(look, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    line = f"data.cache={cache}: cannot be written (Not a directory); name another folder"
    assert the_problem(look(f"data.cache={cache}")) == line
    monkeypatch.setattr(tempfile, "TemporaryFile", raising(OSError(errno.EROFS, "Read-only file system")))
    lines = [problem.words for problem in problems(look())]
    assert [line.partition("=")[0] for line in lines] == ["data.cache", "hydra.run.dir"]
    assert all("Read-only file system" in line for line in lines)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root writes where it likes")
def test_a_folder_of_somebody_else(look, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o555)
    assert "Permission denied" in the_problem(look(f"data.cache={tmp_path / 'cache'}"))


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [
        ("auto", None, ("ok", "disabled; WANDB_API_KEY is not set")),
        ("auto", "secret", ("ok", "online; WANDB_API_KEY is set")),
        ("online", None, ("info", "online; WANDB_API_KEY is not set")),
        ("offline", None, ("ok", "offline; WANDB_API_KEY is not set")),
    ],
)
def test_tracking(look, monkeypatch, mode, key, expected):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    findings = look(f"tracking.wandb.mode={mode}")
    assert said(findings, "tracking", "wandb") == expected
    assert problems(findings) == []
