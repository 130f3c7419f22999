"""A small model with superwords: as itself, as a run, as a Hugging Face folder, and as what answers the harness."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml
from rich.console import Console
from safetensors.torch import save_file

from yxanul.composition import to_plain
from yxanul.config import TokenizerConfig, TokenizerKind
from yxanul.inference.stock import to_stock
from yxanul.tokenizer.load import load_tokenizer
from yxanul.training.checkpoint import Saver, TrainState
from yxanul.training.distributed import ALONE

from .naive import CONTEXT, CPU, TEXT


@pytest.fixture(scope="module")
def tokenizer(cache):
    """With superwords: "the default" and "in the" are tokens."""
    config = TokenizerConfig(
        kind=TokenizerKind.superbpe,
        path=None,
        repo=None,
        revision=None,
        vocab_size=896,  # a multiple of 128: no entry of the model is padding
        transition=600,
        train_bytes=200_000,
        end_of_text="<|endoftext|>",
        bytes_per_token=2.0,
    )
    return load_tokenizer(config, cache, lambda: [TEXT], "argparse")


@pytest.fixture(scope="module")
def model(model_config, build_model, tokenizer):
    return build_model(model_config(max_seq_len=CONTEXT), tokenizer.vocab_size)


@pytest.fixture(scope="module")
def config(compose, model_config, tokenizer):
    sizes = f"tokenizer.vocab_size={tokenizer.vocab_size}", "tokenizer.transition=600", "curriculum.max_seq_len=16"
    base = compose("precision=fp32", "tokenizer=superbpe8k", *sizes)
    return replace(base, model=model_config(max_seq_len=CONTEXT))


@pytest.fixture(scope="module")
def run(config, model, tokenizer, tmp_path_factory):
    """A run's folder with that model in it."""
    folder = tmp_path_factory.mktemp("runs") / "a_run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    shutil.copyfile(tokenizer.path, folder / "tokenizer.json")
    saver = Saver(folder / "checkpoints", 1, ALONE)
    saver.save(TrainState(tokenizer=tokenizer.fingerprint), model, [])
    saver.wait()
    saver.close()
    return folder


@pytest.fixture(scope="module")
def stock(config, model, tokenizer, tmp_path_factory):
    """The same model as a Hugging Face folder."""
    pytest.importorskip("transformers", reason="needs transformers: pip install 'yxanul[export]'")
    folder = tmp_path_factory.mktemp("folders") / "a_folder"
    folder.mkdir()
    exported = to_stock(config, model, tokenizer.end_of_text)
    (folder / "config.json").write_text(json.dumps(exported.config))
    save_file(exported.tensors, folder / "model.safetensors", {"format": "pt"})
    shutil.copyfile(tokenizer.path, folder / "tokenizer.json")
    return folder


@pytest.fixture
def subject_of(tokenizer):
    """What answers the harness: `subject_of(model)`."""
    from yxanul.inference.harness import Subject

    def make(model, context=CONTEXT, write=None):
        return Subject(model, tokenizer, context, write, CPU, Console(quiet=True))

    return make
