"""What a configuration is trusted with, for it may be somebody else's: with no code, and with no secrets.

Hydra builds launcher, sweeper, callbacks and log handlers of the classes that a configuration names, before a command
begins, so that a file could have anything called. And whatever a value takes from the environment is written to the
run's folder. So Hydra composes through a loader that refuses both.
"""

import re
from collections.abc import Iterator
from typing import Any

from hydra._internal import hydra as composer
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from yxanul.errors import ConfigError, UserError

CODE = re.compile(
    r"hydra_plugins\.yxanul\.(InThisProcess|OnThisMachine|OnSlurm|Search)"
    r"|hydra\._internal\.core_plugins\.(basic_launcher\.BasicLauncher|basic_sweeper\.BasicSweeper)"
    r"|optuna\.samplers\.[A-Z]\w*Sampler"
    r"|logging\.(StreamHandler|FileHandler)|rich\.logging\.RichHandler"
)
"""What a configuration may name."""

BUILT, LOGGING = ("launcher", "sweeper", "callbacks"), ("job_logging", "hydra_logging")
"""Groups of hydra that name classes: as _target_, or as logging.config does."""

STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
ADVICE = "leave a secret in the environment, where the library that needs it finds it"
SECRET = {"KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS"}


def register() -> None:
    """Have Hydra compose by these rules; harmless when repeated."""
    composer.ConfigLoaderImpl = TrustedLoader
    OmegaConf.register_new_resolver("oc.env", environment, replace=True)


class TrustedLoader(ConfigLoaderImpl):
    """Composes what Hydra runs, and each job of its sweeps."""

    def load_configuration(self, *arguments: Any, **keywords: Any) -> DictConfig:
        """As its base class; raises UserError for a configuration that asks for too much."""
        config = super().load_configuration(*arguments, **keywords)
        _refuse_code(config)
        for name in filter(is_secret, config.hydra.job.env_set):  # which also holds what env_copy names
            raise UserError(f"hydra.job.env_set.{name}: would be written to the run's folder; {ADVICE}")
        return config


def environment(name: str, *default: Any) -> Any:
    """${oc.env:NAME,DEFAULT}, but for secrets.

    Raises:
        UserError: the name is that of a secret.
    """
    if is_secret(name):
        raise UserError(f"${{oc.env:{name}}}: would be written to the run's folder; {ADVICE}")
    return oc.env(name, *default)


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name is likely to hold a secret, e.g. WANDB_API_KEY."""
    return not SECRET.isdisjoint(str(name).upper().split("_"))


def _refuse_code(config: DictConfig) -> None:
    """Raise ConfigError if the configuration names code that it may not."""
    for group in BUILT:
        node = OmegaConf.select(config, f"hydra.{group}")
        for key, name, value in _leaves(OmegaConf.to_container(node, resolve=True) if node else {}, f"hydra.{group}"):
            if name == "_target_":
                _check(key, value)
    unresolved = OmegaConf.to_container(config.hydra, resolve=False)  # Hydra resolves these in each run's folder
    for group in LOGGING:
        for key, name, value in _leaves(unresolved[group], f"hydra.{group}"):
            named = str(value).startswith("ext://") and value not in STREAMS
            late = "${" in str(value) and name != "filename"  # it may become anything
            if name in ("class", "()") or named or late:
                _check(key, value)


def _check(key: str, value: Any) -> None:
    if not CODE.fullmatch(str(value)):
        raise ConfigError(
            key,
            value,
            "a configuration may name only this project's launchers and sweeper, Hydra's basic ones, optuna's "
            "samplers and plain log handlers",
        )


def _leaves(value: Any, key: str, name: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every value that holds no others, with its dotted key and the last part of that."""
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _leaves(item, f"{key}.{inner}", inner)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key, name)
    else:
        yield key, name, value
