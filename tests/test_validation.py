"""Combinations that cannot work: each is refused with its key, its value and a value that would do."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from yxanul.config import (
    AttentionKernel,
    Backend,
    Config,
    CrossEntropyKernel,
    DataKind,
    Dtype,
    MuonConfig,
    Positions,
    Recipe,
    ScheduleKind,
    Stage,
    TokenizerKind,
)
from yxanul.errors import ConfigError, UserError
from yxanul.validation import validate

MUON = MuonConfig(lr=0.02, momentum=0.95, weight_decay=0.0, iterations=5)
IN_ORDER = {"hardware.deterministic": True}


def stage(seq_len: int = 8, step_tokens: int = 64, share: float = 1.0, lr_scale: float = 1, grad_clip: float = 1):
    return Stage(seq_len, step_tokens, share, lr_scale, grad_clip)


@pytest.fixture(scope="session")
def valid(compose) -> Config:
    """A small configuration that can work, and owes nothing to the values that conf/ is tuned to."""
    config = compose("model=nano", "tokenizer=superbpe8k", "data=stdlib", "hardware=cpu", "optimizer=adamw")
    model = replace(
        config.model, hidden_size=96, num_heads=6, num_kv_heads=2, max_seq_len=64, positions=Positions.rotary
    )
    stages = (stage(8, 64, 0.25), stage(64, 128, 0.75))
    curriculum = replace(config.curriculum, stages=stages, max_step_tokens=None, max_seq_len=None)
    return replace(config, model=model, curriculum=curriculum, train=replace(config.train, tokens=100_000))


def change(config: Config, changes: dict) -> Config:
    """The configuration with values replaced by dotted key."""
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if rest:
            value = change(getattr(config, head), {rest: value})
        config = replace(config, **{head: value})
    return config


def refusal(config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_valid_one_is_valid(valid):
    assert validate(valid) is None


def test_a_config_error_names_key_value_and_advice():
    error = ConfigError("model.num_heads", 5, "must divide 96")
    assert isinstance(error, UserError)
    assert str(error) == "model.num_heads=5: must divide 96" and error.key == "model.num_heads"


POSITIVE = {
    "model": [
        "hidden_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "intermediate_size",
        "embedding_rank",
        "max_seq_len",
        "norm_eps",
        "rope_theta",
        "init_std",
    ],
    "tokenizer": ["vocab_size", "transition", "train_bytes", "bytes_per_token"],
    "curriculum": ["max_step_tokens", "max_seq_len"],
    "hardware": [
        "memory_gb",
        "utilization",
        "compute_capability",
        "nodes",
        "gpus_per_node",
        "gpu_bandwidth",
        "node_bandwidth",
    ],
    "precision": ["watch_every", "max_saturation", "max_error"],
    "hardware.peak_tflops": ["fp32", "bf16"],
    "optimizer": ["lr", "eps"],
    "optimizer.muon": ["lr", "iterations"],
    "train": ["tokens", "steps", "max_bad_steps"],
    "evaluate": ["every", "bytes", "sample_tokens"],
    "checkpoint": ["every", "keep"],
    "tracking": ["log_every", "stall_seconds"],
}


@pytest.mark.parametrize("key", [f"{group}.{key}" for group, keys in POSITIVE.items() for key in keys])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_what_must_be_positive(valid, key, value):
    config = change(change(valid, {"optimizer.muon": MUON}), {key: value})
    assert refusal(config) == f"{key}={value}: must be greater than 0"


CASES = [
    # changes, the key that is named, and what the advice must say
    ({"model.num_heads": 5}, "model.num_heads=5", "must divide model.hidden_size=96; nearest valid: 4 or 6"),
    ({"model.num_kv_heads": 4}, "model.num_kv_heads=4", "must divide model.num_heads=6; nearest valid: 2 or 3"),
    ({"model.num_heads": 32, "model.num_kv_heads": 1}, "model.num_heads=32", "even head size.* is 3"),
    ({"tokenizer.kind": TokenizerKind.hub, "tokenizer.repo": None}, "tokenizer.path=None", "tokenizer.path=FILE"),
    ({"tokenizer.train_bytes": None}, "tokenizer.train_bytes=None", "how many bytes"),
    ({"tokenizer.vocab_size": 511}, "tokenizer.vocab_size=511", "at least 512"),
    ({"model.tied": False, "model.embedding_rank": 8}, "model.tied=False", "model.embedding_rank=null$"),
    ({"tokenizer.transition": None}, "tokenizer.transition=None", "between 257 and tokenizer.vocab_size=8192"),
    ({"tokenizer.transition": 257}, "tokenizer.transition=257", "between 257 and"),
    ({"tokenizer.transition": 8192}, "tokenizer.transition=8192", "between 257 and"),
    ({"curriculum.stages": ()}, "curriculum.stages=[]", "at least one stage"),
    ({"curriculum.stages": (stage(seq_len=0),)}, "curriculum.stages.0.seq_len=0", "greater than 0"),
    ({"curriculum.stages": (stage(step_tokens=0),)}, "curriculum.stages.0.step_tokens=0", "greater than 0"),
    ({"curriculum.stages": (stage(), stage(share=-0.5))}, "curriculum.stages.1.share=-0.5", "greater than 0"),
    ({"curriculum.stages": (stage(lr_scale=0),)}, "curriculum.stages.0.lr_scale=0", "greater than 0"),
    ({"curriculum.stages": (stage(grad_clip=math.nan),)}, "curriculum.stages.0.grad_clip=nan", "greater than 0"),
    ({"model.max_seq_len": 63}, "curriculum.stages.1.seq_len=64", "curriculum.max_seq_len=63"),
    ({"curriculum.stages": (stage(8, 65),)}, "curriculum.stages.0.step_tokens=65", "multiple of seq_len=8.* 64$"),
    ({"curriculum.stages": (stage(8, 3),)}, "curriculum.stages.0.step_tokens=3", "multiple of seq_len=8.* 8$"),
    ({"curriculum.max_step_tokens": 63}, "curriculum.max_step_tokens=63", "set at least 64"),
    ({"curriculum.stages": (stage(share=0.4),)}, "curriculum.stages=shares adding up to 0.4", "the last share 1$"),
    ({"curriculum.stages": (stage(), stage())}, "curriculum.stages=shares adding up to 2", "must add up to 1$"),
    ({"hardware.micro_batch": 7}, "hardware.micro_batch=7", "must be auto, or sequences for each length"),
    ({"hardware.compile": "sometimes"}, "hardware.compile=sometimes", "must be auto, true or false"),
    ({"hardware.recompute": 1.5}, "hardware.recompute=1.5", "share of the layers between 0 and 1"),
    ({**IN_ORDER, "attention": AttentionKernel.flex}, "attention=flex", "deterministic=true take auto or sdpa"),
    ({**IN_ORDER, "cross_entropy": CrossEntropyKernel.liger}, "cross_entropy=liger", "take auto or chunked"),
    ({**IN_ORDER, "hardware.compile": True}, "hardware.compile=True", "take auto or false"),
    ({**IN_ORDER, "precision.fp8": True}, "precision.select=timed", "take all, or patterns"),
    ({"hardware.micro_batch": {"8": 0}}, "hardware.micro_batch.8=0", "at least 1, or auto"),
    ({"hardware.micro_batch": {"8": "many"}}, "hardware.micro_batch.8=many", "at least 1, or auto"),
    ({"hardware.micro_batch": {"long": 1}}, "hardware.micro_batch.long=1", "long is not a sequence length"),
    ({"hardware.micro_batch": {"0": 1}}, "hardware.micro_batch.0=1", "0 is not a sequence length"),
    ({"hardware.micro_batch": {"-8": 1}}, "hardware.micro_batch.-8=1", "-8 is not a sequence length"),
    ({"hardware.micro_batch": {"²": 1}}, "hardware.micro_batch.²=1", "² is not a sequence length"),
    ({"precision.select": "most"}, "precision.select=most", "must be all, timed, or a list of patterns"),
    ({"precision.select": (1,)}, "precision.select=(1,)", "must be all, timed, or a list of patterns"),
    ({"precision.start_step": -1}, "precision.start_step=-1", "not be negative"),
    ({"precision.fp8": True, "precision.compute_dtype": Dtype.fp32}, "precision.fp8=True", "compute_dtype=bf16"),
    ({"precision.fp8": True, "precision.layers": "mine"}, "precision.layers=mine", "exclude one another"),
    (
        {"precision.recipe": Recipe.delayed, "precision.backend": Backend.emulated},
        "precision.recipe=delayed",
        "Transformer Engine's alone",
    ),
    ({"optimizer.betas": (0.9,)}, "optimizer.betas=[0.9]", "two numbers"),
    ({"optimizer.betas": (0.9, 1.0)}, "optimizer.betas=[0.9, 1.0]", "below 1"),
    ({"optimizer.betas": (-0.1, 0.9)}, "optimizer.betas=[-0.1, 0.9]", "at least 0"),
    ({"optimizer.weight_decay": -0.1}, "optimizer.weight_decay=-0.1", "not be negative"),
    ({"optimizer.weight_decay": math.nan}, "optimizer.weight_decay=nan", "not be negative"),
    ({"optimizer.muon": replace(MUON, momentum=1.0)}, "optimizer.muon.momentum=1.0", "below 1"),
    ({"optimizer.muon": replace(MUON, weight_decay=-1)}, "optimizer.muon.weight_decay=-1", "not be negative"),
    ({"data.held_out": 0}, "data.held_out=0", "between 0 and 1"),
    ({"data.held_out": 1}, "data.held_out=1", "between 0 and 1"),
    ({"schedule.warmup": -0.1}, "schedule.warmup=-0.1", "between 0 and 1"),
    ({"schedule.decay": 1.1}, "schedule.decay=1.1", "between 0 and 1"),
    ({"schedule.floor": 2}, "schedule.floor=2", "between 0 and 1"),
    (
        {"schedule.kind": ScheduleKind.wsd, "schedule.warmup": 0.5, "schedule.decay": 0.6},
        "schedule.decay=0.6",
        "schedule.warmup=0.5 .*more than the whole run",
    ),
    ({"ngram.order": -1}, "ngram.order=-1", "between 0 and 4 with tokenizer.vocab_size=8192"),
    ({"ngram.order": 5}, "ngram.order=5", "between 0 and 4 with"),
    ({"ngram.tokens": 0}, "ngram.tokens=0", "greater than 0"),
    ({"ngram.order": 2, "cross_entropy": CrossEntropyKernel.liger}, "cross_entropy=liger", "take chunked"),
    ({"ngram.order": 2, "cross_entropy": CrossEntropyKernel.plain}, "cross_entropy=plain", "take chunked"),
    ({"evaluate.samples": -1}, "evaluate.samples=-1", "not be negative"),
    ({"seed": -1}, "seed=-1", "not be negative"),
    ({"data.kind": DataKind.files, "data.path": None}, "data.path=None", "data.path=DIR"),
]


@pytest.mark.parametrize(("changes", "start", "advice"), CASES, ids=lambda part: part if "=" in str(part) else "")
def test_what_cannot_work_is_refused(valid, changes, start, advice):
    message = refusal(change(valid, changes))
    assert message.startswith(f"{start}: "), message
    assert re.search(advice, message.removeprefix(start)), message


ALLOWED = [
    {"model.num_kv_heads": 6},
    {"model.num_kv_heads": 1},
    {"model.embedding_rank": 8},
    {"model.tied": False, "model.embedding_rank": None},
    {"model.num_heads": 32, "model.num_kv_heads": 1, "model.positions": Positions.learned},
    {"tokenizer.kind": TokenizerKind.hub, "tokenizer.path": "file.json"},
    {"tokenizer.kind": TokenizerKind.bpe, "tokenizer.transition": None},
    {"tokenizer.vocab_size": 512, "tokenizer.transition": 511},
    {"curriculum.max_step_tokens": 64},
    {"curriculum.max_step_tokens": 8, "curriculum.max_seq_len": 8},
    {"model.max_seq_len": 8, "curriculum.max_seq_len": 8},
    {"hardware.micro_batch": {"8": "auto", "64": 1}},
    {"hardware.micro_batch": {}},
    {"hardware.micro_batch": "auto"},
    {"hardware.compile": True, "hardware.recompute": 1.0},
    {**IN_ORDER, "attention": AttentionKernel.bmm, "cross_entropy": CrossEntropyKernel.plain},
    {**IN_ORDER, "precision.fp8": True, "precision.select": "all"},
    {"optimizer.muon": MUON},
    {"optimizer.betas": (0.0, 0.0)},
    {"schedule.kind": ScheduleKind.wsd, "schedule.warmup": 0.8, "schedule.decay": 0.2},
    {"schedule.kind": ScheduleKind.cosine, "schedule.warmup": 0.9, "schedule.decay": 0.2},
    {"evaluate.every": None, "evaluate.samples": 0},
    {"train.steps": 1},
    {"seed": 0},
]


@pytest.mark.parametrize("changes", ALLOWED, ids=str)
def test_what_can_work_is_allowed(valid, changes):
    assert validate(change(valid, changes)) is None


def suggestions(message: str) -> list[int]:
    return [int(number) for number in re.search(r"nearest valid: ([\d or]+)", message)[1].split(" or ")]


@given(data=st.data())
def test_suggested_head_counts_are_valid_and_nearest(valid, data):
    hidden = 2 * data.draw(st.integers(2, 500), label="hidden_size / 2")
    heads = data.draw(st.integers(1, hidden + 50), label="num_heads")
    kv_heads = data.draw(st.sampled_from([1, 2, 3]), label="num_kv_heads")
    assume(hidden % heads)
    config = change(valid, {"model.hidden_size": hidden, "model.num_heads": heads, "model.num_kv_heads": kv_heads})

    works = [h for h in range(1, hidden + 1) if hidden % h == 0 and hidden // h % 2 == 0]
    works = [h for h in works if h % kv_heads == 0] or works
    suggested = suggestions(refusal(config))
    assert set(suggested) <= set(works)
    assert abs(heads - min(works, key=lambda h: abs(heads - h))) == min(abs(heads - h) for h in suggested)
    for count in suggested:
        repaired = change(config, {"model.num_heads": count})
        if count % kv_heads == 0:
            assert validate(repaired) is None
        else:
            assert refusal(repaired).startswith("model.num_kv_heads=")


@given(heads=st.integers(1, 64), kv_heads=st.integers(1, 80))
def test_suggested_kv_head_counts_are_valid(valid, heads, kv_heads):
    config = change(valid, {"model.hidden_size": 2 * heads, "model.num_heads": heads, "model.num_kv_heads": kv_heads})
    if heads % kv_heads == 0:
        assert validate(config) is None
        return
    for count in suggestions(refusal(config)):
        assert validate(change(config, {"model.num_kv_heads": count})) is None


@given(shares=st.lists(st.floats(1e-4, 0.5), min_size=2, max_size=12))
def test_the_suggested_last_share_is_valid(valid, shares):
    total = math.fsum(shares)
    assume(abs(total - 1) > 1.1e-6)
    config = change(valid, {"curriculum.stages": tuple(stage(share=share) for share in shares)})
    message = refusal(config)
    found = re.search(r"the last share (\S+)$", message)
    assert bool(found) == (math.fsum(shares[:-1]) < 1)
    if found:
        repaired = tuple(stage(share=share) for share in [*shares[:-1], float(found[1])])
        assert validate(change(config, {"curriculum.stages": repaired})) is None


@given(st.floats(1e-6, 1e-4).map(lambda excess: 1 + excess) | st.floats(1e-6, 1e-4).map(lambda lack: 1 - lack))
def test_shares_that_are_refused_are_not_shown_as_one(valid, share):
    assume(abs(share - 1) > 1e-6)
    assert "adding up to 1:" not in refusal(change(valid, {"curriculum.stages": (stage(share=share),)}))


@given(seq_len=st.integers(1, 64), step_tokens=st.integers(1, 10_000))
def test_the_suggested_step_is_valid(valid, seq_len, step_tokens):
    assume(step_tokens % seq_len)
    config = change(valid, {"curriculum.stages": (stage(seq_len, step_tokens),)})
    suggested = int(re.search(r"for example (\d+)$", refusal(config))[1])
    assert abs(suggested - step_tokens) <= seq_len
    assert validate(change(config, {"curriculum.stages": (stage(seq_len, suggested),)})) is None


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=5), cap=st.integers(1, 63))
def test_both_ways_out_of_a_small_cap_are_valid(valid, lengths, cap):
    assume(cap < max(lengths))
    stages = tuple(stage(length, 10 * length, 1 / len(lengths)) for length in lengths)
    config = change(valid, {"curriculum.stages": stages, "curriculum.max_step_tokens": cap})
    at_least, shorter = map(
        int, re.search(r"at least (\d+), or curriculum.max_seq_len=(\d+)", refusal(config)).groups()
    )
    assert validate(change(config, {"curriculum.max_step_tokens": at_least})) is None
    assert validate(change(config, {"curriculum.max_seq_len": shorter})) is None


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5), positions=st.integers(1, 199))
def test_the_way_out_of_too_few_positions_is_valid(valid, lengths, positions):
    assume(positions < max(lengths))
    stages = tuple(stage(length, length, 1 / len(lengths)) for length in lengths)
    config = change(valid, {"curriculum.stages": stages, "model.max_seq_len": positions})
    suggested = int(re.search(r"curriculum.max_seq_len=(\d+)", refusal(config))[1])
    assert validate(change(config, {"curriculum.max_seq_len": suggested})) is None
