"""Hydra's sweeper of searches: optuna suggests trials, and each is a run like those of any sweep.

Nothing but the runs is kept: the same command has the same sampler, which suggests the same trials when it is told
the same scores, and a finished run tells its own at once. So a search goes on where it was, or is made longer.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from yxanul.errors import ConfigError, UserError
from yxanul.files import atomic_path
from yxanul.sweep.config import Direction
from yxanul.sweep.launcher import InThisProcess, Submitit, launching, plan, report, runs_have_folders
from yxanul.sweep.runs import SWEEP
from yxanul.sweep.states import RunState, State
from yxanul.sweep.table import shown

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

RESULTS = "optimization_results.yaml"


class Search(Sweeper):
    """`hydra/sweeper=optuna`: looks for the values of some keys with which a run has the fewest bits per byte.

    Args:
        as `StudyConfig` says.
    """

    def __init__(
        self,
        sampler: DictConfig,
        direction: Direction,
        n_trials: int,
        n_jobs: int,
        max_failure_rate: float,
        params: DictConfig,
    ) -> None:
        self.sampler, self.direction, self.params = sampler, direction, params
        self.n_trials, self.n_jobs, self.max_failure_rate = n_trials, n_jobs, max_failure_rate

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config, self.console = hydra_context, config, Console(markup=False, emoji=False)
        self._check()
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(self.launcher, (InThisProcess, Submitit)):
            raise UserError("hydra/sweeper=optuna: needs hydra/launcher=basic, submitit_local or slurm")
        self.folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> None:
        """Make trials until there are enough, or too many have failed.

        Raises:
            UserError: too many have failed.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        overrides = self._overrides(arguments)
        fixed = [each.input_line for each in overrides if not each.is_sweep_override()]
        space = {each.get_key_element(): distribution(each) for each in overrides if each.is_sweep_override()}
        if not space:
            raise UserError(
                "hydra/sweeper=optuna: there is nothing to search; give a key an interval, "
                "for example 'optimizer.lr=tag(log, interval(1e-4, 1e-2))'"
            )
        study = optuna.create_study(sampler=instantiate(self.sampler), direction=self.direction.value)
        if self._left_to_background():
            return
        try:
            with launching(self.folder):
                while len(study.trials) < self.n_trials and not self._failed_too_often(study):
                    self._make_trials(study, space, fixed)
        finally:
            if (self.folder / SWEEP).exists():
                report(self.folder, self.console)
        self._conclude(study)

    def _check(self) -> None:
        if not find_spec("optuna"):
            raise UserError("hydra/sweeper=optuna: optuna is not installed; pip install 'yxanul[optuna]'")
        if not runs_have_folders(self.config):
            raise UserError(
                f"hydra/sweeper=optuna: a run of yxanul.{self.config.hydra.job.name} has no bits per byte; "
                "search with yxanul.train"
            )
        for key in ("n_trials", "n_jobs"):
            if getattr(self, key) < 1:
                raise ConfigError(f"hydra.sweeper.{key}", getattr(self, key), "must be at least 1")

    def _overrides(self, arguments: list[str]) -> list[Override]:
        """What all trials have and what is searched; of a key that both name, the command line's."""
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        parsed = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        return list({override.get_key_element(): override for override in parsed}.values())

    def _left_to_background(self) -> bool:
        if not (isinstance(self.launcher, Submitit) and self.launcher.settings.detach):
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.launcher.leave_to_background(self.folder, self.console)

    def _make_trials(self, study: "Study", space: dict[str, "BaseDistribution"], fixed: list[str]) -> None:
        """Ask for as many trials as may run at the same time, run them, and tell what came out."""
        first = len(study.trials)
        trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - first))]
        asked = [tuple(f"{key}={value}" for key, value in trial.params.items()) for trial in trials]
        unlike = list(dict.fromkeys(asked))  # few choices are soon suggested twice
        overrides = [[*fixed, *each] for each in unlike]
        names = plan(self.context, self.config, overrides, first, [" ".join(each) for each in unlike])
        runs = dict(zip(unlike, self.launcher.run(names, overrides, first), strict=True))
        for trial, each in zip(trials, asked, strict=True):
            self._tell(study, trial, runs[each])

    def _tell(self, study: "Study", trial: "Trial", run: RunState) -> None:
        from optuna.trial import TrialState

        if run.state is State.finished:
            study.tell(trial, run.bits_per_byte)
            words = f"{run.bits_per_byte:.4f} bits per byte; the best is that of trial {study.best_trial.number + 1}"
        else:
            study.tell(trial, state=TrialState.FAIL)
            words = run.state.value
        self._say(f"trial {trial.number + 1} of {self.n_trials}: {words}")

    def _failed_too_often(self, study: "Study") -> bool:
        failed = _failed(study)
        return failed > self.max_failure_rate * self.n_trials or failed == self.n_trials

    def _conclude(self, study: "Study") -> None:
        """Say which trial was the best, also in a file."""
        if self._failed_too_often(study):
            raise UserError(
                f"{_failed(study)} of {self.n_trials} trials failed, and hydra.sweeper.max_failure_rate is "
                f"{self.max_failure_rate}; mend what their logs say, and the same command goes on"
            )
        best = study.best_trial
        with atomic_path(self.folder / RESULTS) as path:  # as hydra-optuna-sweeper writes it
            results = {"name": "optuna", "best_params": best.params, "best_value": best.value}
            path.write_text(yaml.safe_dump(results, sort_keys=False))
        values = " ".join(f"{key}={value}" for key, value in best.params.items())
        self._say(f"best of {self.n_trials}: {values}: {best.value:.4f} bits per byte; {shown(self.folder / RESULTS)}")

    def _say(self, words: str) -> None:
        self.console.print(words, highlight=False, soft_wrap=True, markup=False)


def _failed(study: "Study") -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=[TrialState.FAIL]))


def distribution(override: Override) -> "BaseDistribution":
    """What optuna suggests for an override: any number of an interval, or one of the choices as they are written.

    Raises:
        ConfigError: an interval that holds nothing, or nothing that has a logarithm.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    kind = IntDistribution if isinstance(value.start, int) else FloatDistribution
    try:
        return kind(value.start, value.end, log="log" in value.tags)
    except ValueError as error:
        key, _, text = override.input_line.partition("=")
        raise ConfigError(key, text, str(error)) from error
