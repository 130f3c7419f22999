"""What types cannot say: one configuration key against another.

Every check raises `ConfigError` with the key, its value and the nearest value that would do, before
anything is read, built or written.
"""

import math
from dataclasses import fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from yxanul.config import (
    AttentionKernel,
    Backend,
    Config,
    CrossEntropyKernel,
    CurriculumConfig,
    DataConfig,
    DataKind,
    Dtype,
    HardwareConfig,
    ModelConfig,
    Positions,
    PrecisionConfig,
    Recipe,
    ScheduleKind,
    TokenizerKind,
)
from yxanul.curriculum import capped_stages, steps_per_stage
from yxanul.errors import ConfigError

LEAST, MOST = 1e-30, 10**15
"""What numbers that must be positive lie between: with any two of these, floats can still be multiplied and divided."""

MOST_OF = {"model.num_layers": 10_000, "tokenizer.vocab_size": 2**24}
"""Where less is too much already: each of these is made, or planned, one by one."""

MOST_STEPS, MOST_STEP_TOKENS = 10**7, 2**28
"""Of a plan, which holds every step and every micro-batch of a step."""

IN_ORDER = {
    *(AttentionKernel.auto, AttentionKernel.sdpa, AttentionKernel.bmm),
    *(CrossEntropyKernel.auto, CrossEntropyKernel.chunked, CrossEntropyKernel.plain),
}
"""Kernels that sum in a fixed order when torch is told to."""

SEEDS = 2**64
"""How many torch's generators tell apart."""


def validate(config: Config) -> None:
    """Raise ConfigError for the first combination that cannot work."""
    _strings(config)
    _positive(config)
    if config.init_from is not None and config.resume_from_checkpoint is not None:
        raise ConfigError("init_from", config.init_from, "and resume_from_checkpoint exclude one another; choose one")
    _model(config.model)
    _tokenizer(config)
    _ngram(config)
    _curriculum(config.curriculum, config.model.max_seq_len)
    _steps(config)
    _micro_batches(config.hardware)
    _compute(config.hardware)
    _deterministic(config)
    _precision(config.precision)
    _shares(config)
    _data(config.data)


def _strings(section: Any, prefix: str = "") -> None:
    """Refuse `key=` with nothing behind it, which as a path would be the working directory, and a home that is none."""
    for name in (field.name for field in fields(section)):
        value = getattr(section, name)
        if is_dataclass(value):
            _strings(value, f"{prefix}{name}.")
        elif value == "":
            raise ConfigError(f"{prefix}{name}", value, "is empty; give a value, or leave the key out")
        elif isinstance(value, str) and value.startswith("~"):
            try:
                Path(value).expanduser()
            except RuntimeError as error:
                raise ConfigError(f"{prefix}{name}", value, "there is no such user; write the path out") from error


def _positive(config: Config) -> None:
    groups = {
        "model": (
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "intermediate_size",
            "embedding_rank",
        )
        + ("max_seq_len", "norm_eps", "rope_theta", "init_std"),
        "tokenizer": ("vocab_size", "transition", "train_bytes", "bytes_per_token"),
        "ngram": ("tokens",),
        "curriculum": ("max_step_tokens", "max_seq_len"),
        "data": ("expected_files", "workers", "parts"),
        "hardware": ("memory_gb", "utilization", "compute_capability", "nodes", "gpus_per_node")
        + ("gpu_bandwidth", "node_bandwidth"),
        "hardware.peak_tflops": ("fp32", "bf16"),
        "precision": ("watch_every", "max_saturation", "max_error"),
        "optimizer": ("lr", "eps"),
        "optimizer.muon": ("lr", "iterations"),
        "train": ("tokens", "steps", "max_bad_steps"),
        "evaluate": ("every", "bytes", "context_bytes", "sample_tokens"),
        "checkpoint": ("every", "keep"),
        "tracking": ("log_every", "stall_seconds"),
    }
    for group, keys in groups.items():
        section = attrgetter(group)(config)
        for key in keys if section is not None else ():
            value = getattr(section, key)
            if value is not None:
                _check_positive(f"{group}.{key}", value)


def _check_positive(key: str, value: float) -> None:
    most = MOST_OF.get(key, MOST)
    if not 0 < value < math.inf:
        raise ConfigError(key, value, "must be greater than 0")
    if value < LEAST:
        raise ConfigError(key, value, f"must be at least {LEAST:g}")
    if value > most:
        raise ConfigError(key, value, f"must be at most {most:,}")


def _model(model: ModelConfig) -> None:
    if not model.tied and model.embedding_rank is not None:
        raise ConfigError("model.tied", False, "needs a full-rank embedding; set model.embedding_rank=null")
    if model.hidden_size % model.num_heads:
        heads = [d for d in _divisors(model.hidden_size) if not _odd_heads(replace(model, num_heads=d))]
        fitting = [d for d in heads if d % model.num_kv_heads == 0]  # where some do, name only those
        raise ConfigError(
            "model.num_heads",
            model.num_heads,
            f"must divide model.hidden_size={model.hidden_size}{_nearest(model.num_heads, fitting or heads)}",
        )
    if _odd_heads(model):
        raise ConfigError(
            "model.num_heads",
            model.num_heads,
            "rotary positions need an even head size, "
            f"and model.hidden_size/num_heads is {model.hidden_size // model.num_heads}",
        )
    if model.num_heads % model.num_kv_heads:
        raise ConfigError(
            "model.num_kv_heads",
            model.num_kv_heads,
            f"must divide model.num_heads={model.num_heads}{_nearest(model.num_kv_heads, _divisors(model.num_heads))}",
        )


def _odd_heads(model: ModelConfig) -> bool:
    return model.positions is Positions.rotary and model.hidden_size // model.num_heads % 2 == 1


def _tokenizer(config: Config) -> None:
    tokenizer = config.tokenizer
    if tokenizer.kind is TokenizerKind.hub:
        if tokenizer.path is None and tokenizer.repo is None:
            raise ConfigError("tokenizer.path", None, "name a tokenizer.json: tokenizer.path=FILE")
        return
    if tokenizer.train_bytes is None:
        raise ConfigError("tokenizer.train_bytes", None, "say how many bytes of text to train the tokenizer on")
    if tokenizer.vocab_size < 512:
        raise ConfigError(
            "tokenizer.vocab_size",
            tokenizer.vocab_size,
            "must be at least 512: 256 bytes, end of text, and merges",
        )
    if tokenizer.kind is TokenizerKind.superbpe:
        transition = tokenizer.transition
        if transition is None or not 257 < transition < tokenizer.vocab_size:
            raise ConfigError(
                "tokenizer.transition",
                transition,
                f"must lie between 257 and tokenizer.vocab_size={tokenizer.vocab_size}",
            )


def _ngram(config: Config) -> None:
    if config.ngram.order == 0:
        return
    from yxanul.data.ngrams import key_bits  # it imports torch, for which most commands need not wait here

    longest = 63 // key_bits(config.tokenizer.vocab_size)
    if not 0 <= config.ngram.order <= longest:
        raise ConfigError(
            "ngram.order",
            config.ngram.order,
            f"must lie between 0 and {longest} with tokenizer.vocab_size={config.tokenizer.vocab_size}",
        )
    if config.cross_entropy not in (CrossEntropyKernel.auto, CrossEntropyKernel.chunked):
        kernel, order = config.cross_entropy.value, config.ngram.order
        raise ConfigError("cross_entropy", kernel, f"adds no n-grams; with ngram.order={order} take chunked")


def _data(data: DataConfig) -> None:
    if data.path is None and (data.kind is DataKind.files or data.repo is not None):
        raise ConfigError("data.path", None, "name a file or a folder of *.parquet, *.jsonl or *.txt: data.path=DIR")
    if not 0 <= data.part < data.parts:
        raise ConfigError("data.part", data.part, f"must lie between 0 and data.parts-1={data.parts - 1}")
    if data.repo is not None and data.files is None:
        raise ConfigError("data.files", None, f"say which files of {data.repo}, for example data.files=data/*.parquet")


def _curriculum(curriculum: CurriculumConfig, max_seq_len: int) -> None:
    if not curriculum.stages:
        raise ConfigError("curriculum.stages", "[]", "needs at least one stage")
    for index, stage in enumerate(curriculum.stages):
        key = f"curriculum.stages.{index}"
        for name in ("seq_len", "step_tokens", "share", "lr_scale"):
            _check_positive(f"{key}.{name}", getattr(stage, name))
        if not stage.grad_clip > 0:  # an infinite one clips nothing
            raise ConfigError(f"{key}.grad_clip", stage.grad_clip, "must be greater than 0")
        seq_len = min(stage.seq_len, curriculum.max_seq_len or stage.seq_len)
        if seq_len > max_seq_len:
            raise ConfigError(
                f"{key}.seq_len",
                stage.seq_len,
                f"is longer than the model's positions; set curriculum.max_seq_len={max_seq_len} "
                "or raise model.max_seq_len",
            )
        if stage.step_tokens % stage.seq_len:
            nearest = max(stage.seq_len, round(stage.step_tokens / stage.seq_len) * stage.seq_len)
            raise ConfigError(
                f"{key}.step_tokens",
                stage.step_tokens,
                f"must be a multiple of seq_len={stage.seq_len}, for example {nearest}",
            )
    cap = curriculum.max_step_tokens
    longest = max(min(stage.seq_len, curriculum.max_seq_len or stage.seq_len) for stage in curriculum.stages)
    if cap is not None and cap < longest:
        raise ConfigError(
            "curriculum.max_step_tokens",
            cap,
            f"holds no sequence of the longest stage; set at least {longest}, or curriculum.max_seq_len={cap}",
        )
    total = math.fsum(stage.share for stage in curriculum.stages)
    if abs(total - 1) > 1e-6:
        last = curriculum.stages[-1].share + 1 - total
        hint = f", for example the last share {last:.6g}" if last > 0 else ""
        raise ConfigError(
            "curriculum.stages",
            f"shares adding up to {total:.9g}",
            f"shares must add up to 1{hint}",
        )


def _steps(config: Config) -> None:
    stages = capped_stages(config.curriculum)
    for index, stage in enumerate(stages):
        if stage.step_tokens > MOST_STEP_TOKENS:
            raise ConfigError(
                f"curriculum.stages.{index}.step_tokens", stage.step_tokens, f"must be at most {MOST_STEP_TOKENS:,}"
            )
    steps = sum(steps_per_stage(stages, config.train))
    if steps > MOST_STEPS:
        key = "tokens" if config.train.steps is None else "steps"
        raise ConfigError(
            f"train.{key}",
            getattr(config.train, key),
            f"takes {steps:,} optimizer steps, and a plan holds {MOST_STEPS:,} at most; lower it, or give a step more "
            "tokens by curriculum.stages and curriculum.max_step_tokens",
        )


def _micro_batches(hardware: HardwareConfig) -> None:
    if hardware.micro_batch == "auto":
        return
    if not isinstance(hardware.micro_batch, dict):
        raise ConfigError(
            "hardware.micro_batch",
            hardware.micro_batch,
            "must be auto, or sequences for each length: hardware.micro_batch.<length>=N",
        )
    for length, sequences in hardware.micro_batch.items():
        key = f"hardware.micro_batch.{length}"
        if not isinstance(length, str):  # which no override could change
            raise ConfigError(key, sequences, f"write the length in quotes, '{length}', or {key}={sequences}")
        if not length.isdecimal() or int(length) == 0:
            raise ConfigError(key, sequences, f"{length} is not a sequence length")
        if sequences != "auto" and not (type(sequences) is int and sequences >= 1):
            raise ConfigError(key, sequences, "must be a number of sequences, at least 1, or auto")


def _compute(hardware: HardwareConfig) -> None:
    if hardware.compile not in (True, False, "auto"):
        raise ConfigError("hardware.compile", hardware.compile, "must be auto, true or false")
    if not 0 <= hardware.recompute <= 1:
        raise ConfigError("hardware.recompute", hardware.recompute, "must be a share of the layers between 0 and 1")


def _deterministic(config: Config) -> None:
    """Refuse what sums in no fixed order on a GPU, and what is chosen there by a clock."""
    if not config.hardware.deterministic:
        return
    timed = config.precision.fp8 and config.precision.select == "timed"
    for key, value, wrong, others in (
        ("attention", config.attention.value, config.attention not in IN_ORDER, "auto or sdpa"),
        ("cross_entropy", config.cross_entropy.value, config.cross_entropy not in IN_ORDER, "auto or chunked"),
        ("hardware.compile", True, config.hardware.compile is True, "auto or false"),
        ("precision.select", "timed", timed, "all, or patterns"),
    ):
        if wrong:
            raise ConfigError(
                key, value, f"may round otherwise each time; with hardware.deterministic=true take {others}"
            )


def _precision(precision: PrecisionConfig) -> None:
    selected = precision.select
    patterns = isinstance(selected, (list, tuple)) and all(isinstance(each, str) for each in selected)
    if selected not in ("all", "timed") and not patterns:
        raise ConfigError(
            "precision.select", selected, "must be all, timed, or a list of patterns such as ['*.down', '*.gate_up']"
        )
    if precision.start_step < 0:
        raise ConfigError("precision.start_step", precision.start_step, "must not be negative")
    if precision.fp8 and precision.compute_dtype is Dtype.fp32:
        raise ConfigError("precision.fp8", True, "needs precision.compute_dtype=bf16 for what is not in FP8")
    if precision.fp8 and precision.layers is not None:
        raise ConfigError("precision.layers", precision.layers, "and precision.fp8 exclude one another; choose one")
    if precision.recipe is Recipe.delayed and precision.backend in (Backend.scaled_mm, Backend.emulated):
        raise ConfigError(
            "precision.recipe",
            "delayed",
            f"is Transformer Engine's alone, and precision.backend={precision.backend.value}",
        )


def _shares(config: Config) -> None:
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError("optimizer.betas", list(betas), "must be two numbers of at least 0 and below 1")
    if not 0 < config.data.held_out < 1:
        raise ConfigError(
            "data.held_out",
            config.data.held_out,
            "must be a share of the documents between 0 and 1",
        )
    for key, value in (
        ("warmup", config.schedule.warmup),
        ("decay", config.schedule.decay),
        ("floor", config.schedule.floor),
    ):
        if not 0 <= value <= 1:
            raise ConfigError(f"schedule.{key}", value, "must be a share between 0 and 1")
    schedule, optimizer = config.schedule, config.optimizer
    if schedule.kind is ScheduleKind.wsd and schedule.warmup + schedule.decay > 1:
        raise ConfigError(
            "schedule.decay",
            schedule.decay,
            f"with schedule.warmup={schedule.warmup} it is more than the whole run",
        )
    if optimizer.muon is not None and not 0 <= optimizer.muon.momentum < 1:
        raise ConfigError("optimizer.muon.momentum", optimizer.muon.momentum, "must be at least 0 and below 1")
    for key, value in (
        ("optimizer.weight_decay", optimizer.weight_decay),
        ("optimizer.muon.weight_decay", optimizer.muon.weight_decay if optimizer.muon else 0),
        ("evaluate.samples", config.evaluate.samples),
    ):
        if not 0 <= value <= MOST:
            raise ConfigError(key, value, f"must not be negative, and at most {MOST:,}")
    if not 0 <= config.seed < SEEDS:
        raise ConfigError("seed", config.seed, f"must not be negative, and below {SEEDS:,}")


def _divisors(whole: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(whole) + 1) if whole % d == 0]
    return sorted({*small, *(whole // d for d in small)})


def _nearest(value: int, valid: list[int]) -> str:
    nearest = sorted(sorted(valid, key=lambda d: (abs(d - value), d))[:2])
    return f"; nearest valid: {' or '.join(map(str, nearest))}" if nearest else ""
