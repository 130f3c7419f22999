"""Whether the composed run could start: its device, precision, kernels, plan, text, disk and tracking.

What can be asked of the run's own code is asked of it, so that the answer is the one that the run would get.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from rich.filesize import decimal

from yxanul import hardware
from yxanul.config import (
    AttentionKernel,
    Config,
    CrossEntropyKernel,
    DataConfig,
    DataKind,
    TokenizerKind,
    WandbMode,
)
from yxanul.data import documents
from yxanul.data.documents import Part
from yxanul.data.preparation import corpus_fingerprint, download_folder
from yxanul.data.shards import shard_folder
from yxanul.diagnosis.findings import Row, State, known
from yxanul.errors import UserError
from yxanul.files import room
from yxanul.kernels import AUTO
from yxanul.model.cuda_attention import attentions
from yxanul.model.fused_loss import ON_REQUEST, cross_entropy_kernels
from yxanul.planning import make_plan
from yxanul.precision.linear import Precision, build_precision
from yxanul.tokenizer.load import Tokenizer, find_tokenizer, open_tokenizer
from yxanul.tracking import wandb_mode
from yxanul.training import checkpoint
from yxanul.training.room import room_for_checkpoints


@dataclass(frozen=True)
class Run:
    """What is diagnosed: the composed run in the folder that it would write to."""

    config: Config
    folder: Path

    @cached_property
    def device(self) -> torch.device:
        """As the run would choose it; a GPU that is named and not here stands for itself."""
        return hardware.planned_device(self.config.hardware.device)

    @property
    def device_here(self) -> bool:
        return self.device.type == "cpu" or torch.cuda.is_available()

    @cached_property
    def precision(self) -> Precision:
        return build_precision(self.config.precision, self.device, self.config.hardware.compute_capability)

    @property
    def cache(self) -> Path:
        return Path(self.config.data.cache).expanduser()

    @cached_property
    def text(self) -> tuple[State, str, list[Part]]:
        return _find_text(self.config.data)

    @property
    def parts(self) -> list[Part]:
        """Of the data; none where it is not here."""
        return self.text[2]


def _device(run: Run) -> Iterator[Row]:
    device = hardware.select_device(run.config.hardware.device)
    try_device(device)
    yield "device", State.ok, hardware.describe(device)


def try_device(device: torch.device) -> None:
    """Compute something on it: a GPU may be too new for this torch, or full."""
    (torch.ones(1, device=device) + 1).item()


def _precision(run: Run) -> Iterator[Row]:
    precision = run.precision
    lost = f"; not in FP8: {precision.lost}" if precision.lost else ""
    yield "computes in", known(not lost), precision.computes + lost


def _kernels(run: Run) -> Iterator[Row]:
    if not run.device_here:
        return
    config, dtype = run.config, build_precision(replace(run.config.precision, fp8=False), run.device).dtype
    for key, asked, here in (
        ("attention", config.attention.value, attentions(run.device, dtype)),
        ("cross_entropy", config.cross_entropy.value, cross_entropy_kernels(run.device) | ON_REQUEST),
    ):
        there = ", ".join(here)
        if asked in (AUTO, *here):
            yield key, State.ok, f"{asked}; there are {there}"
        else:
            line = f"{key}={asked}: cannot run on this device in this precision; choose {key}=auto or one of {there}"
            yield key, State.problem, line


def _plan(run: Run) -> Iterator[Row]:
    """The run's plan without what would have to be timed for it."""
    asked = run.config.hardware
    config = replace(
        run.config,
        attention=AttentionKernel.sdpa,
        cross_entropy=CrossEntropyKernel.chunked,
        hardware=replace(asked, peak_tflops=replace(asked.peak_tflops, fp32=1.0, bf16=1.0)),
        precision=replace(run.config.precision, select="all"),
    )
    plan = make_plan(config, run.device, run.precision)
    needed, there = max(stage.memory_bytes for stage in plan.stages), plan.memory_limit
    tokens = sum(stage.tokens for stage in plan.stages)
    memory = f"about {needed / 2**30:.1f} of {there / 2**30:.1f} GiB"
    advice = "; lower hardware.micro_batch.<length>" if needed > there else ""
    yield "plan", known(needed <= there), f"{len(plan.steps):,} steps, {tokens:,} tokens; {memory}{advice}"


def _start(run: Run) -> Iterator[Row]:
    if (run.folder / "result.json").exists():
        yield "begins", State.info, f"{run.folder} is finished"
        return
    checkpoints = checkpoint.checkpoints(run.folder / "checkpoints")
    if not checkpoints and run.config.resume_from_checkpoint is not None:
        checkpoints = [Path(run.config.resume_from_checkpoint).expanduser()]
    for path in checkpoints[-1:]:
        checkpoint.verify(path)
    yield "begins", State.ok, f"at {checkpoints[-1]}" if checkpoints else "anew"


# Its text


def _data(run: Run) -> Iterator[Row]:
    yield "data", *run.text[:2]


def _find_text(data: DataConfig) -> tuple[State, str, list[Part]]:
    """What there is to say of the data, and its parts; none where it is not here."""
    if data.kind is DataKind.stdlib:
        parts = documents.stdlib_parts()
        size = decimal(sum(part.bytes for part in parts))
        return State.ok, f"made from the standard library of this Python, {size}", parts
    try:
        download = _download(data)
        if download:
            return *download, []
        parts = documents.open_source(replace(data, expected_files=None))
        files = documents.source_files(Path(data.path).expanduser())
        size = decimal(sum(file.stat().st_size for file in files))
    except UserError as error:
        return State.problem, str(error), []
    except OSError as error:
        return State.problem, f"data.path={data.path}: cannot be read ({error.strerror}); name another", []
    whole = data.expected_files in (None, len(files))
    count = f"{len(files):,}{'' if whole else f' of {data.expected_files:,}'} {'file' if len(files) == 1 else 'files'}"
    return known(whole), f"{count}, {size}, at {data.path}", parts


def _download(data: DataConfig) -> tuple[State, str] | None:
    """What is to be downloaded first and whether it can be; None if nothing is.

    Raises:
        UserError: the record of a download is damaged.
    """
    root = download_folder(data)
    if root is None:
        return None
    from yxanul.data.download import missing, recorded

    record = recorded(root)
    if record is None and documents.source_files(Path(data.path).expanduser()):
        return None
    listed = record is not None and record["pattern"] == data.files
    absent = missing(root, record["files"]) if listed else {}
    if listed and not absent:
        return None
    size = sum(file["size"] for file in absent.values())
    what = f"{len(absent):,} of {len(record['files']):,} files, {decimal(size)}," if listed else data.files
    if _offline():
        wanted = f"data.path={data.path}: {what} must be downloaded"
        return State.problem, f"{wanted} and HF_HUB_OFFLINE is set; unset it, or name other data"
    state, words = _room("data.path", root, size, "the files take")
    if state is State.problem:
        return state, words
    return State.info, f"{what} would be downloaded from {data.repo} to {root} (not tried here)"


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _tokenizer(run: Run) -> Iterator[Row]:
    config = run.config.tokenizer
    path = find_tokenizer(config, run.cache, corpus_fingerprint(run.parts, run.config.data))
    if path:
        yield "tokenizer", State.ok, str(path)
        yield from _tokens(run, open_tokenizer(path, config))
        return
    if config.kind is not TokenizerKind.hub:
        yield "tokenizer", State.info, f"would be trained on {decimal(config.train_bytes)} of the data"
    elif _offline():
        wanted = f"tokenizer {config.repo}: must be downloaded"
        yield "tokenizer", State.problem, f"{wanted} and HF_HUB_OFFLINE is set; unset it, or give tokenizer.path=FILE"
    else:
        yield "tokenizer", State.info, f"would be downloaded from {config.repo} (not tried here)"
    yield from _tokens(run, None)


def _tokens(run: Run, tokenizer: Tokenizer | None) -> Iterator[Row]:
    """Whether the data is tokenized, and if not, whether there is room for it."""
    if not run.parts:
        yield "tokens", State.info, "would be made once the data is here"
        return
    fingerprint = tokenizer.fingerprint if tokenizer else ""  # of which there are no tokens
    vocab_size = tokenizer.vocab_size if tokenizer else run.config.tokenizer.vocab_size
    folder = shard_folder(run.parts, fingerprint, vocab_size, 0, run.config.data.held_out, run.cache)
    missing = [part.bytes for name, part in folder.parts.items() if not folder.finished(name)]
    if not missing:
        yield "tokens", State.ok, f"prepared in {folder.path}"
        return
    size = round(sum(missing) / run.config.tokenizer.bytes_per_token * folder.dtype.itemsize)
    state, words = _room("data.cache", run.cache, size, "the tokens take about")
    made = f"{len(missing)} of {len(run.parts)} shards would be made, about {decimal(size)}"
    yield "tokens", State.info if state is State.ok else state, made if state is State.ok else words


# Where it writes


def _disk(run: Run) -> Iterator[Row]:
    yield "cache", *_room("data.cache", run.cache)
    yield "run", *_tried(lambda: room_for_checkpoints(run.config, run.folder))


def _room(key: str, folder: Path, needed: int = 0, what: str = "") -> tuple[State, str]:
    return _tried(lambda: room(key, folder, needed, what))


def _tried(look: Callable[[], str]) -> tuple[State, str]:
    try:
        return State.ok, look()
    except UserError as error:
        return State.problem, str(error)


def _tracking(run: Run) -> Iterator[Row]:
    mode = wandb_mode(run.config.tracking.wandb.mode.value, os.environ)
    key = bool(os.environ.get("WANDB_API_KEY"))
    words = f"{mode}; WANDB_API_KEY is {'set' if key else 'not set'}"
    yield "wandb", known(key or mode != WandbMode.online.value), words


PROBES = (
    ("run", _device),
    ("run", _precision),
    ("run", _kernels),
    ("run", _plan),
    ("run", _start),
    ("text", _data),
    ("text", _tokenizer),
    ("disk", _disk),
    ("tracking", _tracking),
)
"""Topic and probe, in the order in which they are told."""
