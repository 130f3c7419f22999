"""Models judged on the same text: bits per byte of all of it, and by source, document length and position."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yxanul.config import DataConfig, DataKind, OnError
from yxanul.data.documents import Texts, open_source, unit_hash
from yxanul.data.preparation import held_out_data
from yxanul.data.shards import first_by_hash
from yxanul.errors import UserError
from yxanul.inference.foreign import is_stock, open_stock
from yxanul.inference.loading import open_run, run_config
from yxanul.model import count
from yxanul.model.attention import sdpa
from yxanul.tokenizer.load import Tokenizer
from yxanul.training.evaluation import Part, TokenLosses, by_position, held_out, parts, token_nats

LENGTHS = (1_000, 4_000, 16_000, 64_000)
"""Bytes that divide documents by their length."""


@dataclass(frozen=True)
class Document:
    """A text and where it comes from."""

    source: str
    text: str


@dataclass(frozen=True)
class Judged:
    """A model that can be judged.

    Attributes:
        context: tokens that it sees.
    """

    name: str
    model: TokenLosses
    tokenizer: Tokenizer
    context: int
    parameters: int


@dataclass(frozen=True)
class Verdict:
    """What a model makes of a text.

    Attributes:
        whole: of all of it.
        by: of its parts, by source, length and position.
    """

    judged: Judged
    whole: Part
    perplexity: float
    by: dict[str, list[Part]]


def open_judged(folder: Path, device: torch.device) -> Judged:
    """A run, or a Hugging Face folder; raises UserError as `open_run` and `open_stock`."""
    if is_stock(folder):
        opened = open_stock(folder, device)
        return Judged(folder.name, opened.model, opened.tokenizer, opened.context, opened.parameters)
    run = open_run(folder, device)
    parameters = count.parameters(run.config.model, run.config.tokenizer.vocab_size)
    return Judged(folder.name, run.model, run.tokenizer, run.config.model.max_seq_len, parameters)


def documents_of(path: Path, text_column: str, at_most_bytes: int) -> list[Document]:
    """The documents of a file or folder, by ascending hash up to so many bytes.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    return _chosen(_files(path, text_column), 1.0, at_most_bytes)


def held_out_of(run: Path, at_most_bytes: int) -> list[Document]:
    """The documents that a run was judged on, or more of those that it never trained on.

    Raises:
        UserError: `run` is no run, or its data is not there any more.
    """
    data = run_config(run).data
    if data.held_out_path is None:
        return _chosen(data, data.held_out, at_most_bytes)
    return _chosen(held_out_data(data), 1.0, at_most_bytes)


def _chosen(data: DataConfig, share: float, at_most_bytes: int) -> list[Document]:
    """Of the documents whose hash is below `share`."""
    sources = {
        text: part.name
        for part in open_source(data)
        for text in Texts([part], data.on_error)
        if unit_hash(text) < share
    }
    if not sources:
        raise UserError(f"{data.path}: holds no document to judge a model on")
    return [Document(sources[text], text) for text in first_by_hash(sources, at_most_bytes)]


def _files(path: Path, text_column: str) -> DataConfig:
    return DataConfig(
        kind=DataKind.files,
        path=str(path),
        repo=None,
        revision=None,
        files=None,
        expected_files=None,
        text_column=text_column,
        cache="",
        held_out=0.0,
        held_out_path=None,
        on_error=OnError.stop,
        workers=1,
        part=0,
        parts=1,
    )


def judge(judged: Judged, texts: Sequence[Document], context_bytes: int | None, device: torch.device) -> Verdict:
    """Judge a model on documents.

    Args:
        context_bytes: of text that it sees at most, so that models with other tokenizers see the same; None for all
            that its context holds.
    """
    prepared = held_out([each.text for each in texts], judged.tokenizer, judged.context, context_bytes)
    nats = token_nats(judged.model, prepared, device, sdpa)
    of_documents = {
        "source": _labelled([each.source for each in texts]),
        "length": _by_length([len(each.text.encode()) for each in texts]),
    }
    by = {
        each: parts(prepared, nats, places[prepared.documents], names) for each, (names, places) in of_documents.items()
    }
    by["position"] = by_position(prepared, nats)
    bits = nats.sum() / math.log(2) / prepared.bytes
    whole = Part("all", prepared.tokens, prepared.bytes, bits)
    return Verdict(judged, whole, math.exp(min(nats.sum() / prepared.tokens, 700)), by)


def _labelled(labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different labels, and the place of each in them."""
    names, places = np.unique(labels, return_inverse=True)
    return names.tolist(), places


def _by_length(sizes: Sequence[int]) -> tuple[list[str], np.ndarray]:
    names = [f"under {limit:,} bytes" for limit in LENGTHS] + [f"{LENGTHS[-1]:,} bytes and more"]
    return names, np.searchsorted(LENGTHS, sizes, side="right")
