"""What types cannot say: one configuration key against another.

Every check raises `ConfigError` with the key, its value and the nearest value that would do, before
anything is read, built or written.
"""

import math
from collections.abc import Iterable

from yxanul.config import (
    Config,
    CurriculumConfig,
    DataKind,
    HardwareConfig,
    ModelConfig,
    Positions,
    TokenizerKind,
)
from yxanul.errors import ConfigError


def validate(config: Config) -> None:
    """Raise ConfigError for the first combination that cannot work."""
    _positive(config)
    _model(config.model)
    _tokenizer(config)
    _curriculum(config.curriculum, config.model.max_seq_len)
    _micro_batches(config.hardware)
    _shares(config)
    if config.data.kind is DataKind.files and config.data.path is None:
        raise ConfigError(
            "data.path",
            None,
            "name a file or a folder of *.parquet, *.jsonl or *.txt: data.path=DIR",
        )


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
        "curriculum": ("max_step_tokens", "max_seq_len"),
        "hardware": ("memory_gb", "utilization"),
        "optimizer": ("lr", "eps"),
        "train": ("tokens", "steps", "max_bad_steps"),
        "evaluate": ("every", "bytes"),
        "checkpoint": ("every", "keep"),
        "tracking": ("log_every",),
    }
    for group, keys in groups.items():
        for key in keys:
            value = getattr(getattr(config, group), key)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{group}.{key}", value, "must be greater than 0")


def _model(model: ModelConfig) -> None:
    if model.hidden_size % model.num_heads:
        raise ConfigError(
            "model.num_heads",
            model.num_heads,
            _divisors(model.num_heads, model.hidden_size, "model.hidden_size"),
        )
    if model.num_heads % model.num_kv_heads:
        raise ConfigError(
            "model.num_kv_heads",
            model.num_kv_heads,
            _divisors(model.num_kv_heads, model.num_heads, "model.num_heads"),
        )
    head_dim = model.hidden_size // model.num_heads
    if model.positions is Positions.rotary and head_dim % 2:
        raise ConfigError(
            "model.num_heads",
            model.num_heads,
            f"rotary positions need an even head size, and hidden_size/num_heads is {head_dim}",
        )


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


def _curriculum(curriculum: CurriculumConfig, max_seq_len: int) -> None:
    if not curriculum.stages:
        raise ConfigError("curriculum.stages", "[]", "needs at least one stage")
    for index, stage in enumerate(curriculum.stages):
        key = f"curriculum.stages.{index}"
        for name in ("seq_len", "step_tokens", "share", "lr_scale", "grad_clip"):
            if not getattr(stage, name) > 0:
                raise ConfigError(f"{key}.{name}", getattr(stage, name), "must be greater than 0")
        seq_len = min(stage.seq_len, curriculum.max_seq_len or stage.seq_len)
        if seq_len > max_seq_len:
            raise ConfigError(
                f"{key}.seq_len",
                stage.seq_len,
                f"is longer than the model's positions; set curriculum.max_seq_len={max_seq_len} or raise model.max_seq_len={max_seq_len}",
            )
        if stage.step_tokens % stage.seq_len:
            nearest = max(stage.seq_len, round(stage.step_tokens / stage.seq_len) * stage.seq_len)
            raise ConfigError(
                f"{key}.step_tokens",
                stage.step_tokens,
                f"must be a multiple of seq_len={stage.seq_len}, for example {nearest}",
            )
        cap = curriculum.max_step_tokens
        if cap is not None and cap < seq_len:
            raise ConfigError(
                "curriculum.max_step_tokens",
                cap,
                f"holds no sequence of stage {index + 1}, whose length is {seq_len}; set at least {seq_len}",
            )
    total = math.fsum(stage.share for stage in curriculum.stages)
    if abs(total - 1) > 1e-6:
        last = curriculum.stages[-1].share + 1 - total
        hint = f", for example the last share {last:.6g}" if last > 0 else ""
        raise ConfigError(
            "curriculum.stages",
            f"shares adding up to {total:.6g}",
            f"shares must add up to 1{hint}",
        )


def _micro_batches(hardware: HardwareConfig) -> None:
    for length, sequences in hardware.micro_batch.items():
        key = f"hardware.micro_batch.{length}"
        if not length.isdigit() or int(length) == 0:
            raise ConfigError(key, sequences, f"{length} is not a sequence length")
        if sequences != "auto" and not (isinstance(sequences, int) and sequences >= 1):
            raise ConfigError(key, sequences, "must be a number of sequences, at least 1, or auto")


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
    if config.schedule.warmup + config.schedule.decay > 1:
        raise ConfigError(
            "schedule.decay",
            config.schedule.decay,
            f"with schedule.warmup={config.schedule.warmup} it is more than the whole run",
        )
    if config.optimizer.weight_decay < 0:
        raise ConfigError("optimizer.weight_decay", config.optimizer.weight_decay, "must not be negative")
    if config.evaluate.samples < 0 or config.evaluate.sample_tokens < 1:
        raise ConfigError(
            "evaluate.samples",
            config.evaluate.samples,
            "must not be negative, and evaluate.sample_tokens at least 1",
        )


def _divisors(value: int, whole: int, name: str) -> str:
    divisors: Iterable[int] = (d for d in range(1, whole + 1) if whole % d == 0)
    nearest = sorted(sorted(divisors, key=lambda d: (abs(d - value), d))[:2])
    return f"must divide {name}={whole}; nearest valid: {' or '.join(map(str, nearest))}"
