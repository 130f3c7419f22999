"""From conf/ and the command line to the schema's dataclasses, and from those to the name of a run.

Hydra merges conf/ and the overrides into the schema, which refuses unknown keys and wrong types; `parse` then turns
the result into frozen dataclasses, and nothing past this module sees OmegaConf.
"""

import dataclasses
import hashlib
import json
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, List, Optional, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from yxanul.config import BenchmarkConfig, CompareConfig, Config, InspectConfig
from yxanul.errors import ConfigError
from yxanul.sweep import config as sweep_config
from yxanul.sweep.runs import sweep_name

KINDS = {
    "schema": Config,
    "compare_schema": CompareConfig,
    "inspect_schema": InspectConfig,
    "benchmark_schema": BenchmarkConfig,
}
"""The names under which conf/ finds the schemas of the commands."""

NOT_IDENTITY = ("hydra", "tracking", "checkpoint")
"""Groups that change nothing in what a run computes, and so are no part of its name."""

NOT_TEXT = ("cache", "on_error", "workers", "part", "parts")
"""Keys of data that do not change what the text is."""

NOT_HARDWARE = ("nodes", "gpus_per_node", "parallel", "gpu_bandwidth", "node_bandwidth")
"""Keys of hardware that change nothing in what a run computes: it goes on with another number of processes."""


def parse(config: DictConfig, schema: type[Config] = Config) -> Config:
    """The composed configuration as frozen dataclasses of `schema`, interpolations resolved.

    Raises:
        ConfigError: a key that the schema does not know was added with `+key=value`, or one was deleted with `~key`.
    """
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return _build(schema, plain, "")


def recorded(plain: dict[str, Any]) -> Config:
    """The configuration that `to_plain` was once made of.

    Raises:
        ConfigError: it has a key too many, too few or of a wrong type.
    """
    if not isinstance(plain, dict):
        raise ConfigError("configuration", "recorded", "holds no keys")
    try:
        return parse(OmegaConf.merge(OmegaConf.structured(_writable(Config)), plain))
    except OmegaConfBaseException as error:
        raise ConfigError("configuration", "recorded", str(error).splitlines()[0]) from error


def to_plain(value: Any) -> Any:
    """A configuration object as dicts, lists, strings and numbers, ready for JSON or YAML."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value


def known_keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, e.g. "model.hidden_size"; the vocabulary of typo correction."""
    keys = []
    for name, hint in get_type_hints(cls).items():
        keys.append(prefix + name)
        hint = _present(hint)
        if get_origin(hint) is list and dataclasses.is_dataclass(get_args(hint)[0]):
            keys += known_keys(get_args(hint)[0], f"{prefix}{name}.0.")
        if dataclasses.is_dataclass(hint):
            keys += known_keys(hint, f"{prefix}{name}.")
    return keys


def _build(hint: Any, value: Any, key: str) -> Any:
    hint = _present(hint)
    if value is None:
        return None
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        for unknown in value.keys() - hints.keys():
            raise ConfigError(f"{key}{unknown}", value[unknown], f"no such key; there are {', '.join(hints)}")
        for deleted in hints.keys() - value.keys():
            raise ConfigError(f"{key}{deleted}", "", f"cannot be deleted; leave ~{key}{deleted} out")
        return hint(**{name: _build(sub, value[name], f"{key}{name}.") for name, sub in hints.items()})
    if get_origin(hint) is list:
        return tuple(_build(get_args(hint)[0], item, f"{key}{index}.") for index, item in enumerate(value))
    return value


def _present(hint: Any) -> Any:
    """The T of an Optional[T]; any other hint as it is."""
    options = [option for option in get_args(hint) if option is not type(None)]
    return options[0] if get_origin(hint) is Union and len(options) == 1 else hint


@cache
def _writable(cls: type) -> type:
    """The same dataclass unfrozen: OmegaConf makes frozen ones read-only, and Hydra could not merge into them."""

    def convert(hint: Any) -> Any:
        if dataclasses.is_dataclass(hint):
            return _writable(hint)
        if dataclasses.is_dataclass(_present(hint)):
            return Optional[_writable(_present(hint))]
        if get_origin(hint) is list and dataclasses.is_dataclass(get_args(hint)[0]):
            return List[_writable(get_args(hint)[0])]
        return hint

    return dataclasses.make_dataclass(
        cls.__name__,
        [(name, convert(hint)) for name, hint in get_type_hints(cls).items()],
        bases=tuple(_writable(base) for base in cls.__bases__ if dataclasses.is_dataclass(base)),
    )


def identity(plain: dict[str, Any]) -> dict[str, Any]:
    """The part of a plain configuration that a run computes from: two runs that differ in it are two runs."""
    kept = {key: value for key, value in plain.items() if key not in NOT_IDENTITY}
    kept["data"] = {key: value for key, value in kept["data"].items() if key not in NOT_TEXT}
    kept["hardware"] = {key: value for key, value in kept["hardware"].items() if key not in NOT_HARDWARE}
    return kept


def first_difference(here: Any, there: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first dotted key at which two plain values differ, with both values; None if they are equal."""
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        here, there = dict(enumerate(here)), dict(enumerate(there))
    if isinstance(here, dict) and isinstance(there, dict):
        for name in sorted(here.keys() | there.keys()):
            found = first_difference(here.get(name), there.get(name), f"{key}.{name}".lstrip("."))
            if found:
                return found
        return None
    return None if here == there else (key, here, there)


def run_name(root: DictConfig) -> str:
    """The name of a composed run: its choices and a hash of everything that it computes from."""
    groups = ("model", "precision", "tokenizer", "curriculum", "data")
    for group in groups:
        if group not in root.hydra.runtime.choices:
            raise ConfigError(group, "[...]", "takes one choice, not a list of them")
    choices = [str(root.hydra.runtime.choices[group]) for group in groups]
    kept = OmegaConf.masked_copy(root, [key for key in root if key not in NOT_IDENTITY])  # "hydra" holds this name
    plain = OmegaConf.to_container(kept, resolve=True, enum_to_str=True)
    digest = hashlib.sha256(json.dumps(identity(plain), sort_keys=True).encode()).hexdigest()[:8]
    return "-".join([*choices, f"seed{root.seed}", digest])


def config_dir() -> Path:
    """The conf/ tree: inside the package when installed from a wheel, beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "conf"


def register() -> None:
    """Make the schemas and the resolvers of the names of runs and sweeps known to Hydra; harmless when repeated."""
    store = ConfigStore.instance()
    for name, schema in KINDS.items():
        store.store(name, _writable(schema))
    sweep_config.register()
    OmegaConf.register_new_resolver("run_name", lambda *, _root_: run_name(_root_), replace=True)
    OmegaConf.register_new_resolver("sweep_name", lambda *, _root_: sweep_name(_root_), replace=True)
