"""The launchers and the sweeper as plugins of Hydra, without a package of their own."""

import sys
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from yxanul.sweep.launcher import InThisProcess, OnSlurm, OnThisMachine
from yxanul.sweep.search import Search

MODULE = "hydra_plugins.yxanul"
"""Where the plugins stand for Hydra, which takes them only from below hydra_plugins."""


def register() -> None:
    """Make the plugins known to Hydra; harmless when repeated."""
    plugins = Plugins.instance()  # which looks for an installed hydra_plugins
    package = MODULE.partition(".")[0]
    sys.modules.setdefault(package, ModuleType(package))
    module = sys.modules.setdefault(MODULE, ModuleType(MODULE))
    for plugin in (InThisProcess, OnThisMachine, OnSlurm, Search):
        plugin.__module__ = MODULE
        setattr(module, plugin.__name__, plugin)
        plugins.register(plugin)
    store = ConfigStore.instance()
    store.repo["hydra"]["sweeper"].pop("optuna.yaml", None)  # of hydra-optuna-sweeper: conf/ has one of that name
    store.store("basic", {"_target_": f"{MODULE}.InThisProcess"}, group="hydra/launcher")
