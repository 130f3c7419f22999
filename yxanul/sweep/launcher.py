"""Hydra's launchers of a sweep: in this process, in processes of their own, or as jobs of a SLURM cluster.

All of them put the runs on the sweep's list first, leave finished runs alone, go on when one fails, and end with
the table of states.
"""

import os
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from yxanul.errors import UserError
from yxanul.sweep import scheduler
from yxanul.sweep.job import FULL_ERROR, CommandJob
from yxanul.sweep.runs import LAUNCHER, JobRecord, launcher_of, record_job, record_launcher, record_runs, varied
from yxanul.sweep.states import RunState, State, states_of, sweep_states
from yxanul.sweep.table import logs, shown, sweep_table
from yxanul.sweep.wait import Wait, on_hang_up

IN_BACKGROUND = "YXANUL_IN_BACKGROUND"
"""Set in the process that a detached launcher leaves behind."""

NOT_OF_THE_RUN = ("hydra.sweep", "hydra/sweeper", "hydra.run.", "hydra.mode", "hydra.launcher", "hydra/launcher")
"""Overrides that a run of the sweep is not to be started with."""


class InThisProcess(BasicLauncher):
    """Hydra's basic launcher, under whose name it stands."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=_pinned(config))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Make the runs and return their bits per byte; None for one that did not finish, and has said why."""
        if not runs_have_folders(self.config):
            return super().launch(job_overrides, initial_job_idx)
        sweep = Path(self.config.hydra.sweep.dir)
        runs = plan(self.hydra_context, self.config, job_overrides, initial_job_idx, varied(job_overrides))
        try:
            with launching(sweep):
                return _returns(self.run(runs, job_overrides, initial_job_idx), job_overrides)
        finally:
            report(sweep, Console(markup=False, emoji=False))

    def run(self, runs: Sequence[str], overrides: Sequence[Sequence[str]], first: int) -> list[RunState]:
        """Make runs that are on the sweep's list, numbered from `first`; how they ended."""
        super().launch(overrides, first)
        return states_of(Path(self.config.hydra.sweep.dir), runs)


class Submitit(Launcher):
    """What the launchers have in common that submit a job for each run.

    Args:
        settings: of conf/hydra/launcher/.
    """

    def __init__(self, **settings: object) -> None:
        self.settings = OmegaConf.create(settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, _pinned(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit what is not finished or on its way, and wait for it unless told not to.

        Returns:
            The runs' bits per byte.

        Raises:
            UserError: not all runs finished.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        console, sweep = Console(markup=False, emoji=False), Path(self.config.hydra.sweep.dir)
        runs = plan(self.context, self.config, job_overrides, initial_job_idx, varied(job_overrides))
        if self.settings.detach and self._detach(sweep, console):
            return []
        try:
            with launching(sweep):
                ended = self.run(runs, job_overrides, initial_job_idx)
        finally:
            report(sweep, console)
        if self.settings.detach:
            _say_how_to_look(sweep, console)
            return []
        failed = [run for run in ended if run.state is not State.finished]
        if failed:
            raise UserError(
                f"{len(failed)} of {len(runs)} runs did not finish; mend what their logs say, "
                "and the same command starts only those"
            )
        return _returns(ended, job_overrides)

    def run(self, runs: Sequence[str], overrides: Sequence[Sequence[str]], first: int) -> list[RunState]:
        """Make runs that are on the sweep's list, numbered from `first`; how they ended, or stand if detached."""
        sweep = Path(self.config.hydra.sweep.dir)
        arguments = dict(zip(runs, overrides, strict=True))
        numbers = {name: first + index for index, name in enumerate(runs)}

        def submit(name: str, slot: int) -> JobRecord:
            folder = (sweep / name).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            job = CommandJob(
                f"yxanul.{self.config.hydra.job.name}",
                (*_flags(self.config), *arguments[name], *self._hydra_overrides(folder, numbers[name])),
                folder,
            )
            record = self.submit(job, slot)
            record_job(folder, record)
            return record

        with on_hang_up(KeyboardInterrupt):
            wait = Wait(
                sweep,
                runs,
                submit,
                Console(markup=False, emoji=False),
                self.settings.parallel,
                self.settings.poll_seconds,
            )
            try:
                wait.submit_all() if self.settings.detach else wait.until_ended()
            except BaseException:
                wait.cancel()
                raise
        return states_of(sweep, runs)

    @abstractmethod
    def submit(self, job: CommandJob, slot: int) -> JobRecord:
        """Hand a run to the scheduler; `slot` counts the runs that are on their way at the same time."""

    def _detach(self, sweep: Path, console: Console) -> bool:
        """Leave the launching to another process; False where the scheduler can be left alone with all runs."""
        return False

    def leave_to_background(self, sweep: Path, console: Console) -> bool:
        """Start the same command in the background, where it stays until all has ended; False if this is it."""
        if os.environ.pop(IN_BACKGROUND, None):
            self.settings.detach = False
            return False
        log = sweep / "sweep.log"
        command = [sys.executable, "-m", f"yxanul.{self.config.hydra.job.name}", *sys.argv[1:]]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=os.environ | {IN_BACKGROUND: "1", "HYDRA_FULL_ERROR": os.environ[FULL_ERROR]},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        record_launcher(sweep, process.pid)
        console.print(
            f"process {process.pid} starts the runs from the background; it writes {shown(log)}",
            highlight=False,
            soft_wrap=True,
        )
        _say_how_to_look(sweep, console)
        return True

    def _hydra_overrides(self, folder: Path, number: int) -> list[str]:
        asked = self.config.hydra.overrides.hydra
        kept = [override for override in asked if not override.lstrip("+~").startswith(NOT_OF_THE_RUN)]
        return [*kept, f"hydra.run.dir={_quoted(folder)}", f"hydra.job.num={number}", f"hydra.job.id={number}"]


class OnThisMachine(Submitit):
    """`hydra/launcher=submitit_local`: each run in processes of its own."""

    def submit(self, job: CommandJob, slot: int) -> JobRecord:
        each = self.settings.gpus_per_task
        count = None if each is None else each * self.settings.tasks_per_node
        gpus = None if count is None else ",".join(str(slot * count + index) for index in range(count))
        return scheduler.submit_local(job, self.settings, gpus)

    def _detach(self, sweep: Path, console: Console) -> bool:
        return self.leave_to_background(sweep, console)


class OnSlurm(Submitit):
    """`hydra/launcher=slurm`: each run as a job of the cluster."""

    def submit(self, job: CommandJob, slot: int) -> JobRecord:
        return scheduler.submit_slurm(job, self.settings)

    def _detach(self, sweep: Path, console: Console) -> bool:
        if self.settings.parallel is not None:
            raise UserError("hydra.launcher.detach=true: nobody stays to count; leave hydra.launcher.parallel at null")
        return False


def runs_have_folders(config: DictConfig) -> bool:
    """Whether the sweep is of a command whose runs have folders, and so states; asked before there is a run."""
    return OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"] != "."


def report(sweep: Path, console: Console) -> None:
    """Print where the runs of a sweep stand."""
    states = sweep_states(sweep)
    console.print(sweep_table(sweep, states), highlight=False)
    console.print(logs(states), highlight=False, soft_wrap=True, end="")


@contextmanager
def launching(sweep: Path) -> Iterator[None]:
    """Be the process that starts the sweep's runs.

    Raises:
        UserError: another one is.
    """
    other = launcher_of(sweep)
    if other not in (None, os.getpid()):
        raise UserError(
            f"{sweep}: process {other} is running this sweep; python -m yxanul.sweep wait|cancel {shown(sweep)}"
        )
    record_launcher(sweep, os.getpid())
    try:
        yield
    finally:
        (sweep / LAUNCHER).unlink(missing_ok=True)


def plan(
    context: HydraContext, config: DictConfig, overrides: Sequence[Sequence[str]], first: int, varies: Sequence[str]
) -> list[str]:
    """The folders' names of the runs, which are put on the sweep's list with what varies in them.

    Raises:
        UserError: two runs have the same folder.
    """
    names = []
    for index, each in enumerate(overrides):
        run = context.config_loader.load_sweep_config(config, list(each))
        with open_dict(run):
            run.hydra.job.id = run.hydra.job.num = first + index
        HydraConfig.instance().set_config(run)  # which ${hydra:...} in a run's values asks
        name = str(OmegaConf.select(run, "hydra.sweep.subdir"))
        if name in names:
            raise UserError(
                f"{name}: two runs of the sweep ({' '.join(overrides[names.index(name)])}, {' '.join(each)}) have this "
                "folder; they are the same run, or hydra.sweep.subdir does not tell them apart"
            )
        names.append(name)
    record_runs(Path(config.hydra.sweep.dir), dict(zip(names, varies, strict=True)))
    return names


def _returns(runs: Sequence[RunState], overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """What any sweeper gets: the bits per byte of a finished run, else None, for Hydra's own would raise an error."""
    return [
        JobReturn(
            overrides=each,
            status=JobStatus.COMPLETED,
            _return_value=run.bits_per_byte if run.state is State.finished else None,
        )
        for run, each in zip(runs, overrides, strict=True)
    ]


def _pinned(config: DictConfig) -> DictConfig:
    """The sweep's configuration, which its runs are composed from, with the sweep's folder as it is now.

    Each run has overrides of its own, and would make another name of them.
    """
    with open_dict(config):
        config.hydra.sweep.dir = config.hydra.sweep.dir
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={_quoted(config.hydra.sweep.dir)}")
    return config


def _flags(config: DictConfig) -> list[str]:
    """Hydra's flags that say where the configuration comes from."""
    folders = [each.path for each in config.hydra.runtime.config_sources if each.provider == "command-line"]
    name = f"--config-name={config.hydra.job.config_name}"
    return [name, *(f"--config-dir={folder}" for folder in folders)]


def _quoted(path: Path | str) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _say_how_to_look(sweep: Path, console: Console) -> None:
    console.print(
        f"\npython -m yxanul.sweep status {shown(sweep)}     and wait, logs, cancel", highlight=False, soft_wrap=True
    )
