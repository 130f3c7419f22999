"""Shared by all tests: no cache of the user's is touched, and GPU tests are skipped where there is no GPU."""

import argparse
import functools
import os
from dataclasses import replace
from pathlib import Path

import hydra
import pytest
import torch
from hypothesis import settings

from yxanul.composition import config_dir, parse, register
from yxanul.config import Config, FeedForward, ModelConfig, Norm, OnError, Positions, TokenizerConfig, TokenizerKind
from yxanul.data.documents import Part
from yxanul.data.shards import Corpus, shard_folder
from yxanul.model.transformer import Transformer
from yxanul.tokenizer.load import Tokenizer, load_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

torch.set_num_threads(1)  # the tensors of tests are small, and threads would only wait for one another

settings.register_profile("yxanul", deadline=None)  # a busy machine is no failure
settings.load_profile("yxanul")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache folder for the whole session, so that tokenizers and tokens are made once."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["YXANUL_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder of real text and tokenizers beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def model_config():
    """Makes small model configurations, e.g. `model_config(num_layers=1)`."""
    tiny = ModelConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=48,
        embedding_rank=None,
        tied=True,
        max_seq_len=64,
        norm=Norm.rmsnorm,
        norm_eps=1e-6,
        feed_forward=FeedForward.swiglu,
        positions=Positions.rotary,
        rope_theta=10000.0,
        qk_norm=True,
        init_std=0.02,
    )
    return lambda **changes: replace(tiny, **changes)


@pytest.fixture(scope="session")
def build_model():
    """Makes initialized float32 models; the weights are large, so that attention is far from uniform."""

    def build(config: ModelConfig, vocab_size: int = 61, init_std: float = 0.3, seed: int = 0) -> Transformer:
        model = Transformer(
            config, vocab_size, lambda rows, columns: torch.nn.Linear(rows, columns, bias=False), torch.float32
        )
        model.initialize(init_std, torch.Generator().manual_seed(seed))
        return model

    return build


@pytest.fixture(scope="session")
def small_tokenizer(cache):
    """A byte-level tokenizer of 512 entries, learned from one module in a blink."""
    text = Path(argparse.__file__).read_text(encoding="utf-8")
    config = TokenizerConfig(
        kind=TokenizerKind.bpe,
        path=None,
        repo=None,
        revision=None,
        vocab_size=512,
        transition=None,
        train_bytes=200_000,
        end_of_text="<|endoftext|>",
        bytes_per_token=2.0,
    )
    return load_tokenizer(config, cache, lambda: [text], "argparse")


@pytest.fixture(scope="session")
def make_corpus():
    """Tokenizes one part: `make_corpus(texts, tokenizer, held_out, cache)`."""

    def make(texts: list[str], tokenizer: Tokenizer, held_out: float, cache: Path) -> Corpus:
        parts = [Part("p", "f", lambda: texts)]
        folder = shard_folder(
            parts, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.end_of_text, held_out, cache
        )
        info = folder.write("00000", tokenizer.bulk_encoder(), OnError.stop)
        return Corpus(folder.path, folder.dtype, [info], 1)

    return make


@pytest.fixture(scope="session")
def compose():
    """Composes a `Config` from conf/ and overrides as the command line does: `compose("model=nano", "seed=2")`."""

    @functools.cache
    def parsed(*overrides: str) -> Config:
        register()
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            return parse(hydra.compose("train", overrides=list(overrides)))

    return parsed


@pytest.fixture(scope="session")
def precision_of(compose):
    """The configuration of a precision by name: `precision_of("bf16")`."""
    return lambda name: compose(f"precision={name}").precision


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Overrides of a run of a second: a tiny model of a few modules, two dozen steps over most stages."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("argparse", "datetime", "inspect", "typing"):
        text = (Path(argparse.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        pieces = [text[start : start + 2000] for start in range(0, len(text), 2000)]
        (folder / f"{name}.txt").write_text("\n<|endoftext|>\n".join(pieces), encoding="utf-8")
    return (
        "experiment=quickstart",
        "model=nano",
        "precision=fp32",
        "tokenizer=superbpe8k",
        "optimizer=muon",
        "optimizer.lr=0.003",
        "optimizer.betas=[0.9,0.95]",
        "optimizer.muon.lr=0.02",
        "optimizer.muon.momentum=0.95",
        "schedule=cosine",
        "data=parquet",
        f"data.path={folder}",
        "data.held_out=0.1",
        "tokenizer.vocab_size=2048",
        "tokenizer.transition=1536",
        "tokenizer.train_bytes=300000",
        "model.hidden_size=64",
        "model.num_layers=2",
        "model.num_heads=2",
        "model.num_kv_heads=1",
        "model.intermediate_size=128",
        "model.max_seq_len=128",
        "curriculum=ultra",
        "curriculum.max_seq_len=128",
        "curriculum.max_step_tokens=256",
        "hardware=auto",
        "hardware.peak_tflops.fp32=0.1",
        "hardware.micro_batch.128=1",
        "train.tokens=6000",
        "checkpoint.every=3",
        "checkpoint.keep=2",
        "evaluate.every=10",
        "evaluate.bytes=10000",
        "evaluate.samples=1",
        "evaluate.sample_tokens=8",
        "tracking=minimal",
    )
