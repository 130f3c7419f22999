"""What this machine can do, and whether the composed run could start on it.

Every finding is of a topic; a problem is what would stop the run, in words that say what to do. What can be asked
of the run's own code is asked of it, so that the answer is the one that the run would get.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path

import torch
from rich.filesize import decimal

from yxanul import __version__, hardware
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
from yxanul.errors import ConfigError, UserError
from yxanul.kernels import AUTO, compiles, find_compiler
from yxanul.model.count import parameters
from yxanul.model.cuda_attention import attentions
from yxanul.model.fused_loss import cross_entropy_kernels
from yxanul.planning import make_plan
from yxanul.precision import support
from yxanul.precision.linear import Precision, build_precision
from yxanul.tokenizer.load import Tokenizer, find_tokenizer, open_tokenizer
from yxanul.tracking import wandb_mode
from yxanul.training import checkpoint

LIBRARIES = {
    "Triton": "triton",
    "Transformer Engine": "transformer-engine",
    "flash-attn": "flash-attn",
    "torchao": "torchao",
    "Liger": "liger-kernel",
}
"""What a GPU may use beside torch: name -> distribution."""

STATE_COPIES = 3
"""Numbers kept for each parameter: the weight and AdamW's two."""

ANSWER_SECONDS = 10
"""For nvidia-smi."""

BROKEN = (RuntimeError, OSError, ImportError, AssertionError)
"""What torch and the libraries for a GPU raise where a driver, a library or a build does not fit."""


class State(Enum):
    ok = "ok"
    info = "info"
    problem = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic, subject: what it is about.
        words: what was found; of a problem the whole line, with what to do.
    """

    topic: str
    subject: str
    state: State
    words: str


Row = tuple[str, State, str]
"""A finding without its topic."""


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


def diagnose(config: Config, folder: Path) -> list[Finding]:
    """All findings, by topic.

    Args:
        folder: of the run.
    """
    run = Run(config, folder)
    findings: list[Finding] = []
    with warnings.catch_warnings(action="ignore"):  # torch's on a driver; the finding says why CUDA is not there
        for topic, probe in PROBES:
            told = {finding.words for finding in problems(findings)}
            found = [Finding(topic, *row) for row in _safely(probe, run)]
            findings += [finding for finding in found if finding.words not in told]
    return findings


def problems(findings: list[Finding]) -> list[Finding]:
    """Those that would stop the run from starting."""
    return [finding for finding in findings if finding.state is State.problem]


def _safely(probe: Callable[[Run], Iterator[Row]], run: Run) -> Iterator[Row]:
    """The rows of a probe; what it raises is a problem."""
    try:
        yield from probe(run)
    except UserError as error:
        yield getattr(error, "key", ""), State.problem, str(error)
    except BROKEN as error:
        yield "", State.problem, f"{type(error).__name__}: {_first_line(error)}; mend that, or choose hardware=cpu"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _known(known: bool) -> State:
    return State.ok if known else State.info


# The machine


def _software(run: Run) -> Iterator[Row]:
    yield "yxanul", State.ok, f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
    cuda = torch.version.cuda
    yield "torch", State.ok, f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}"


def _gpus(run: Run) -> Iterator[Row]:
    """The machine's, whether the run uses them or not: nothing about them is a problem in itself."""
    reason = _why_no_cuda()
    if reason:
        seen = ", ".join(_nvidia_smi("name"))
        advice = f"; nvidia-smi sees {seen}: install a torch and a driver that fit each other" if seen else ""
        yield "CUDA", State.info, f"no GPU that torch can use ({reason}){advice}"
        return
    for index in range(torch.cuda.device_count()):
        try:
            gpu = torch.cuda.get_device_properties(index)
        except BROKEN as error:
            yield f"cuda:{index}", State.info, f"does not answer ({_first_line(error)})"
            continue
        memory = f"{gpu.total_memory / 2**30:.1f} GiB"
        yield f"cuda:{index}", State.ok, f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {memory}"
    driver = _nvidia_smi("driver_version")
    yield "driver", _known(bool(driver)), driver[0] if driver else "not known: nvidia-smi does not answer"


def _why_no_cuda() -> str | None:
    """Why torch can use no GPU, in its own words; None if it can."""
    try:
        torch.cuda.init()
    except BROKEN as error:
        return _first_line(error)
    return None if torch.cuda.is_available() else "none found"


def _nvidia_smi(field: str) -> list[str]:
    """A field of every GPU; none where there is no such program, or it fails."""
    ask = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()


def _processor(run: Run) -> Iterator[Row]:
    memory = hardware.memory_bytes(replace(run.config.hardware, memory_gb=None), torch.device("cpu"))
    cores = f"{os.cpu_count()} cores, of which torch uses {torch.get_num_threads()}"
    yield "processor", State.ok, f"{hardware.processor()}, {memory / 2**30:.1f} GiB, {cores}"
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(unit)]
    yield "bf16 units", _known(bool(units)), ", ".join(units) or "none"


def _compilers(run: Run) -> Iterator[Row]:
    compiler = find_compiler(torch.device("cpu"))
    yield "C++ compiler", _known(compiler is not None), compiler or "none"
    compiled = compiles(run.config.hardware, run.device)
    yield "torch.compile", State.ok, f"the layers would be {'compiled' if compiled else 'left as they are'}"


def _libraries(run: Run) -> Iterator[Row]:
    for name, distribution in LIBRARIES.items():
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            yield name, State.info, "not installed"
            continue
        missing = support.transformer_engine_missing() if distribution == "transformer-engine" else None
        yield name, _known(missing is None), f"{version}; {missing}" if missing else version


def _fp8(run: Run) -> Iterator[Row]:
    machine = support.machine(run.device, run.config.hardware.compute_capability)
    for backend, recipes in support.RECIPES.items():
        by_reason = defaultdict(list)
        for recipe in recipes:
            by_reason[support.why_not(backend, recipe, machine)].append(recipe.value)
        for reason, names in by_reason.items():
            words = f"{', '.join(names)}: {reason or ('can run' if machine.here else 'could run')}"
            yield support.NAMES[backend], _known(reason is None), words
    try:
        choice = support.choose(replace(run.config.precision, fp8=True), machine)
    except ConfigError as error:  # a problem only of a run in FP8; its precision says so
        yield "precision=fp8", State.info, f"would not start: {error}"
        return
    words = f"would compute without FP8: {choice}" if isinstance(choice, str) else f"would compute in {choice}"
    yield "precision=fp8", _known(not isinstance(choice, str)), words


# The run


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
    yield "computes in", _known(not lost), precision.computes + lost


def _kernels(run: Run) -> Iterator[Row]:
    if not run.device_here:
        return
    config, dtype = run.config, build_precision(replace(run.config.precision, fp8=False), run.device).dtype
    for key, asked, here in (
        ("attention", config.attention.value, attentions(run.device, dtype)),
        ("cross_entropy", config.cross_entropy.value, cross_entropy_kernels(run.device)),
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
    yield "plan", _known(needed <= there), f"{len(plan.steps):,} steps, {tokens:,} tokens; {memory}{advice}"


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
    return _known(whole), f"{count}, {size}, at {data.path}", parts


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
    state, room = _room("data.path", root, size, "the files take")
    if state is State.problem:
        return state, room
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
    state, room = _room("data.cache", run.cache, size, "the tokens take about")
    made = f"{len(missing)} of {len(run.parts)} shards would be made, about {decimal(size)}"
    yield "tokens", State.info if state is State.ok else state, made if state is State.ok else room


# Where it writes


def _disk(run: Run) -> Iterator[Row]:
    yield "cache", *_room("data.cache", run.cache)
    config, folder = run.config, run.folder / "checkpoints"
    copies = config.checkpoint.keep + 1  # a new one is written before the oldest is removed
    numbers = STATE_COPIES * parameters(config.model, config.tokenizer.vocab_size)
    needed = copies * numbers * torch.float32.itemsize
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    yield "run", *_room("hydra.run.dir", run.folder, max(0, needed - held), f"{copies} checkpoints take up to")


def _room(key: str, folder: Path, needed: int = 0, what: str = "") -> tuple[State, str]:
    """Whether so many bytes can be written to the folder that a key names; nothing stays behind."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return State.problem, f"{key}={folder}: cannot be written ({error.strerror}); name another folder"
    needs = f"{what} {decimal(needed)}, " if needed else ""
    words = f"{needs}{decimal(free)} free"
    if needed >= free:
        return State.problem, f"{key}={folder}: {words}; make room there, or name another folder"
    return State.ok, f"{words} in {folder}"


def _tracking(run: Run) -> Iterator[Row]:
    mode = wandb_mode(run.config.tracking.wandb.mode.value, os.environ)
    key = bool(os.environ.get("WANDB_API_KEY"))
    words = f"{mode}; WANDB_API_KEY is {'set' if key else 'not set'}"
    yield "wandb", _known(key or mode != WandbMode.online.value), words


PROBES = (
    ("software", _software),
    ("GPU", _gpus),
    ("CPU", _processor),
    ("compilation", _compilers),
    ("libraries", _libraries),
    ("FP8", _fp8),
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
