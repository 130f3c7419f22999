"""The schema: what composes, what is refused, and what a run is called."""

import dataclasses
import json
import re
from enum import Enum
from typing import get_args, get_type_hints

import hydra
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from yxanul.composition import config_dir, first_difference, known_keys, parse, register, run_name, to_plain
from yxanul.config import Config, Dtype, MuonConfig, WandbMode
from yxanul.errors import ConfigError

CHEAP = ("model=nano", "precision=fp32", "tokenizer=bpe8k", "curriculum=none", "data=stdlib", "hardware=cpu")


def composed(*overrides: str) -> DictConfig:
    """What Hydra hands on, its own part included."""
    register()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides), return_hydra_config=True)


def schema_classes(cls: type = Config) -> set[type]:
    """All dataclasses of the schema, found through its type hints."""
    found = {cls}
    for hint in get_type_hints(cls).values():
        for inner in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(inner):
                found |= schema_classes(inner)
    return found


def leaves(plain, prefix: str = "") -> dict:
    """Dotted keys of nested dicts and lists, with their values."""
    if isinstance(plain, dict):
        items = plain.items()
    elif isinstance(plain, list):
        items = enumerate(plain)
    else:
        return {prefix: plain}
    return {key: value for name, item in items for key, value in leaves(item, f"{prefix}.{name}".strip(".")).items()}


# --- parse


@pytest.mark.parametrize("cls", sorted(schema_classes(), key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_the_schema_is_frozen_and_holds_no_values(cls):
    assert cls.__dataclass_params__.frozen
    for field in dataclasses.fields(cls):
        assert field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING, field.name


def test_parse_gives_frozen_dataclasses_all_the_way_down(compose):
    config = compose("optimizer=muon")
    for part in (config, config.model, config.curriculum.stages[0], config.optimizer.muon, config.tracking.wandb):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, 1)
    assert isinstance(config.curriculum.stages, tuple)
    assert isinstance(config.optimizer.betas, tuple)


def test_parse_keeps_types(compose):
    config = compose("model.norm_eps=1", "precision=bf16", "tracking.wandb.mode=offline", "seed=7")
    assert config.model.norm_eps == 1.0 and isinstance(config.model.norm_eps, float)
    assert config.precision.compute_dtype is Dtype.bf16
    assert config.tracking.wandb.mode is WandbMode.offline
    assert config.seed == 7 and isinstance(config.seed, int)


def test_an_optional_group_is_none_or_built(compose):
    assert compose("optimizer=adamw").optimizer.muon is None
    muon = compose("optimizer=muon", "optimizer.muon.momentum=0.5").optimizer.muon
    assert isinstance(muon, MuonConfig) and muon.momentum == 0.5


@pytest.mark.parametrize(
    ("overrides", "key", "neighbour"),
    [
        (["+foo=1"], "foo", "resume_from_checkpoint"),
        (["+model.foo=1"], "model.foo", "hidden_size"),
        (["++model.foo=1"], "model.foo", "hidden_size"),
        (["+tracking.wandb.foo=1"], "tracking.wandb.foo", "project"),
        (["+hardware.peak_tflops.fp4=1"], "hardware.peak_tflops.fp4", "bf16"),
        (["optimizer=muon", "+optimizer.muon.foo=1"], "optimizer.muon.foo", "momentum"),
        (["+curriculum.stages.3.foo=1"], "curriculum.stages.3.foo", "grad_clip"),
    ],
)
def test_an_added_key_that_the_schema_lacks_is_refused(compose, overrides, key, neighbour):
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}=1: no such key; there are .*\b{neighbour}\b") as caught:
        compose(*overrides)
    assert caught.value.key == key


def test_a_length_can_be_added_to_the_micro_batches(compose):
    assert compose("hardware=cpu", "+hardware.micro_batch.2049=3").hardware.micro_batch["2049"] == 3


def test_a_misspelt_key_without_plus_is_refused_by_the_schema(compose):
    with pytest.raises(ConfigCompositionException, match="hiden_size"):
        compose("model.hiden_size=8")


def test_interpolations_are_resolved(compose, cache, monkeypatch):
    assert compose("curriculum=none", "model.max_seq_len=512").curriculum.stages[0].seq_len == 512
    assert compose("seed=${model.num_layers}", "model.num_layers=5").seed == 5
    assert compose("seed=100").data.cache == str(cache)
    monkeypatch.delenv("YXANUL_CACHE")
    assert compose("seed=101").data.cache == "~/.cache/yxanul"


def test_plan_and_train_compose_the_same_run(compose):
    register()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        planned = parse(hydra.compose("plan", overrides=["experiment=quickstart"]))
    assert planned == compose("experiment=quickstart")


# --- to_plain


@pytest.mark.parametrize("overrides", [CHEAP, ("optimizer=muon", "hardware=h100"), ("experiment=quickstart",)])
def test_a_configuration_survives_yaml(compose, overrides):
    """config.yaml holds everything: merged into the schema again it is the same configuration."""
    config = compose(*overrides)
    plain = yaml.safe_load(yaml.safe_dump(to_plain(config)))
    assert json.loads(json.dumps(plain)) == plain == to_plain(config)
    schema = ConfigStore.instance().load("schema.yaml").node
    assert parse(OmegaConf.merge(schema, plain)) == config


def test_to_plain_leaves_nothing_but_plain_values(compose):
    values = leaves(to_plain(compose("optimizer=muon"))).values()
    assert {type(value) for value in values} == {str, int, float, bool, type(None)}
    assert not any(isinstance(value, Enum) for value in values)


# --- known_keys


def test_known_keys_are_the_keys_of_a_composed_run():
    run = composed("optimizer=muon", "curriculum=none")
    known = known_keys()
    assert len(known) == len(set(known))
    missing = object()
    for key in known:
        assert OmegaConf.select(run, key, default=missing) is not missing, key
    del run.hydra
    there = {re.sub(r"\.\d+$", "", key) for key in leaves(OmegaConf.to_container(run))}
    assert {key for key in there if not key.startswith("hardware.micro_batch")} <= set(known)


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "model",
        "model.hidden_size",
        "optimizer.muon.momentum",
        "curriculum.stages",
        "curriculum.stages.0.seq_len",
        "tracking.wandb.mode",
        "hardware.peak_tflops.bf16",
        "hardware.micro_batch",
    ],
)
def test_known_keys_reach_everywhere(key):
    assert key in known_keys()


# --- run_name


@pytest.fixture(scope="module")
def name() -> str:
    """Of the cheap run."""
    return run_name(composed(*CHEAP))


def test_a_run_is_named_by_its_choices():
    name = run_name(composed(*CHEAP, "seed=3"))
    assert re.fullmatch(r"nano-fp32-bpe8k-none-stdlib-seed3-[0-9a-f]{8}", name)


def test_the_same_command_is_the_same_name(name):
    again = composed(*reversed(CHEAP))
    assert run_name(again) == name
    assert run_name(composed(*CHEAP, f"model.hidden_size={again.model.hidden_size}")) == name, "what it was anyway"


@pytest.mark.parametrize(
    "override",
    [
        "seed=12345",
        "model.num_layers=3",
        "optimizer.lr=1.5e-5",
        "optimizer=muon",
        "schedule=wsd",
        "hardware=h100",
        "hardware.micro_batch.2048=7",
        "train.tokens=12345",
        "train.steps=12345",
        "curriculum.stages.0.grad_clip=0.123",
        "data.held_out=0.123",
        "evaluate.bytes=12345",
        "tokenizer.path=elsewhere.json",
        "resume_from_checkpoint=elsewhere",
        "hardware.peak_tflops.fp32=1.5",
    ],
)
def test_what_a_run_computes_is_in_its_name(name, override):
    assert run_name(composed(*CHEAP, override)) != name


@pytest.mark.parametrize(
    "override",
    [
        "tracking=minimal",
        "tracking=offline",
        "tracking.log_every=12345",
        "tracking.wandb.project=elsewhere",
        "checkpoint.every=12345",
        "checkpoint.keep=12345",
        "data.cache=elsewhere",
        "hydra.run.dir=elsewhere",
        "hydra.job_logging.root.level=DEBUG",
    ],
)
def test_what_only_watches_a_run_is_not_in_its_name(name, override):
    assert run_name(composed(*CHEAP, override)) == name


def test_naming_a_run_leaves_its_configuration_alone(name):
    run = composed(*CHEAP)
    before = OmegaConf.to_container(run)
    assert run_name(run) == name
    assert OmegaConf.to_container(run) == before


def test_every_run_of_a_sweep_has_a_name_of_its_own():
    names = [
        run_name(composed(f"tokenizer={tokenizer}", f"seed={seed}"))
        for tokenizer in ("t80k", "t180k")
        for seed in (1, 2)
    ]
    assert len(set(names)) == len(names)


def test_first_difference_names_the_key_and_both_values():
    here, there = {"a": 1, "b": {"c": [1, 2], "d": None}}, {"a": 1, "b": {"c": [1, 3], "d": None}}
    assert first_difference(here, there) == ("b.c.1", 2, 3)
    assert first_difference([1], [1, 2]) == ("", [1], [1, 2])
    assert first_difference(here, here) is None
    assert first_difference({"a": {}}, {}) == ("a", {}, None)
