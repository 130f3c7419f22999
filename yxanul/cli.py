"""The command line: Hydra composes the configuration, and whatever goes wrong is one line.

Hydra prints composition errors over several lines and job errors with a traceback. Here it is told to raise
instead (`HYDRA_FULL_ERROR`, its own switch), and the error is put into one line that names the key, the
value and the nearest valid choice. A user who sets HYDRA_FULL_ERROR=1 gets the whole traceback.
"""

import difflib
import errno
import logging
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from yxanul import composition, trust
from yxanul.composition import config_dir
from yxanul.config import Config
from yxanul.errors import ConfigError, UserError
from yxanul.rank import find_rank
from yxanul.sweep import plugins
from yxanul.sweep.job import FULL_ERROR
from yxanul.sweep.runs import record_outcome
from yxanul.sweep.table import shown
from yxanul.validation import validate

log = logging.getLogger(__name__)

SILENT = ("hydra.output_subdir=null", "hydra/job_logging=none")
"""For the processes of a run above the first: the folder belongs to that one."""

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM} | {
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
}
"""What a user can mend of the operating system's errors; the others are bugs."""


def run(task: Callable[[Any], int], config_name: str, kind: type[Config] = Config) -> int:
    """Compose `config_name` with the command line's overrides, validate it as a `kind` and run `task` on it.

    Returns the exit status: what the task returned, or 1 after a line on stderr for an error that the user
    can mend. With `--multirun` it is the worst status of the jobs.
    """
    full_error = _set_up_hydra()
    started = False
    statuses = []
    try:
        _check_flags()
        _check_folder()
    except UserError as error:
        report(error, kind)
        return _status(error)

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)
    def job(composed: DictConfig) -> None:
        nonlocal started
        started = True
        status = _run_one(task, composed, kind, full_error)
        if not (_sweeping() and "max_failure_rate" in HydraConfig.get().sweeper):  # which judges by itself
            statuses.append(status)
        if _sweeping() and status > 128:
            raise KeyboardInterrupt  # a signal stops the sweep, not only the run that received it

    try:
        job()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it can", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        ours = started and not isinstance(error, (UserError, HydraException, OmegaConfBaseException))
        if full_error or ours:
            raise
        report(error if started else _no_folder(error), kind)
        return _status(error)
    return max(statuses, default=0)


def _set_up_hydra() -> bool:
    """Tell Hydra what is ours, and to raise its errors; returns whether the user wants to see tracebacks."""
    composition.register()
    plugins.register()
    trust.register()
    OmegaConf.register_new_resolver("run_name", _checked_name, replace=True)
    os.environ[FULL_ERROR] = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if find_rank().rank > 0:
        sys.argv += SILENT
    return os.environ[FULL_ERROR] == "1"


def _sweeping() -> bool:
    """Whether the run that Hydra started is one of a sweep, in a folder of its own."""
    return HydraConfig.get().mode is RunMode.MULTIRUN and HydraConfig.get().sweep.subdir != "."


def _run_one(task: Callable[[Any], int], composed: DictConfig, kind: type[Config], full_error: bool) -> int:
    """Validate a composed configuration and run `task` on it; returns its status.

    What goes wrong in a run of a sweep is told and recorded here, so that the others go on. A single run raises it,
    but for a line about what the user can mend.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if _sweeping():
        record_outcome(folder, None)
    status = 1
    try:
        config = composition.parse(composed, kind)
        validate(config)
        status = task(config)
    except Exception as error:
        if not _sweeping() and (full_error or not _mendable(error)):
            raise
        status = _status(error)
        if full_error:
            traceback.print_exc()
        elif _mendable(error):
            report(error, kind)
        else:
            _report_bug(error, folder / f"{HydraConfig.get().job.name}.log")
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
        raise
    finally:
        if _sweeping():
            record_outcome(folder, status)
    return status


def _check_flags() -> None:
    """Refuse in one line what Hydra's parser refuses with its usage.

    Raises:
        UserError: a flag is not known, or lacks its value, or stands between overrides.
    """

    def fail(message: str) -> None:
        raise UserError(f"{message}; --help says more, and flags stand before all overrides or behind them")

    parser = get_args_parser()
    parser.error = fail
    parser.parse_args()


def _check_folder() -> None:
    """Refuse a folder without a name, as of a variable that is not set: it would be the working directory.

    Raises:
        ConfigError: the folder of the run or of the sweep.
    """
    for word in sys.argv[1:]:
        key, _, name = word.lstrip("+").partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and not name.strip("\"'"):
            raise ConfigError(key, "", "is empty; name a folder, or leave the key out")


def report(error: Exception, kind: type[Config]) -> None:
    """Print an error that the user can mend as one line on stderr, whatever the names in it hold."""
    print("error:", *explain(error, kind).split(), file=sys.stderr)


def _no_folder(error: Exception) -> Exception:
    """Of an error before the task began, in other words if it is Hydra's, which cannot make the folder to write to."""
    disk = error.__cause__ if isinstance(error, ValueError) else error  # logging has one for a file it cannot open
    if not (isinstance(disk, OSError) and disk.filename):
        return error
    key = "hydra.sweep.dir" if {"--multirun", "-m"} & set(sys.argv) else "hydra.run.dir"
    return ConfigError(key, disk.filename, f"cannot be made ({disk.strerror}); name another folder")


def _report_bug(error: Exception, path: Path) -> None:
    """Print one line on stderr; the traceback goes to the run's log."""
    log.info("a bug ended the run", exc_info=error)
    print(f"error: {type(error).__name__}: {_one_line(error)}; the traceback is in {shown(path)}", file=sys.stderr)


def _mendable(error: Exception) -> bool:
    disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
    return disk or isinstance(error, (UserError, OmegaConfBaseException))


def explain(error: Exception, kind: type[Config] = Config) -> str:
    """An error of ours, Hydra's or OmegaConf's as one line with the key, the value and the nearest choice."""
    mendable = _user_error(error)
    if mendable:
        return _one_line(mendable)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: is not key=value; a value with special characters needs quotes: 'key=\"value\"'"
    if isinstance(error, OmegaConfBaseException) or isinstance(error.__cause__, OmegaConfBaseException):
        return _omegaconf_error(error, kind)
    if isinstance(error, HydraException):
        return _one_line(error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; mend that and start again, what was written before is intact"
    if "Config group override must be" in str(error) and _no_choices():
        return f"{' '.join(_no_choices())}: names no choice; write group=choice, or key=value"
    below_null = isinstance(error, (AssertionError, AttributeError))  # all that OmegaConf says about a key below a null
    hint = "; choose what is set before its keys, for example optimizer=muon" if below_null else ""
    return f"cannot set up {' '.join(sys.argv[1:]) or 'the run'} ({type(error).__name__}: {_one_line(error)}){hint}"


def _checked_name(*, _root_: DictConfig) -> str:
    """The run's name; a single run that cannot work gets an error instead, before Hydra makes it a folder."""
    if _root_.hydra.mode is RunMode.RUN:
        validate(composition.parse(OmegaConf.masked_copy(_root_, [key for key in _root_ if key != "hydra"])))
    return composition.run_name(_root_)


def _status(error: Exception) -> int:
    """The exit status after an error."""
    return error.status if isinstance(error, UserError) else 1


def _user_error(error: BaseException | None) -> UserError | None:
    """The error itself or what lies under it: OmegaConf wraps what a resolver raises."""
    while error is not None and not isinstance(error, UserError):
        error = error.__context__
    return error


def _omegaconf_error(error: Exception, kind: type[Config]) -> str:
    """Of the two errors Hydra's names the override as typed, and OmegaConf's, its cause, the fault."""
    cause = error.__cause__ or error
    override = re.match(r"(?:Could not override '|Error merging override [+~]*)([^'=]+)", str(error))
    key = re.sub(r"\[(\d+)\]", r".\1", str(cause.full_key))
    if override and override[1].startswith(f"{key}."):  # OmegaConf stops at the first part that it does not know
        key = override[1]
        if isinstance(cause.parent_node, ListConfig):
            return f"{key}: no such entry; there are {len(cause.parent_node)}, counted from 0"
    elif override and not key.startswith(override[1]):  # nor does it know where in a list an element will stand
        key = f"{override[1]}.{key}"
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        return _unknown_key(key, kind)
    if "is not a ListConfig" in str(cause):
        return f"{key}: is a list; write {key}=[...]"
    return f"{key}: {_one_line(cause)}{_whole_number(cause)}"


def _whole_number(error: Exception) -> str:
    """How to write 1e9 where an integer is wanted."""
    found = re.match(r"Value '(\d\S*)' of type 'float' could not be converted to Integer", str(error))
    number = float(found[1]) if found else math.nan
    return f"; write {int(number):_}" if number.is_integer() and number < 2**53 else ""


def _unknown_key(key: str, kind: type[Config]) -> str:
    if re.fullmatch(r"hardware\.micro_batch\.\d+", key):
        return f"{key}: this hardware has no entry for that length; add one with +{key}=SEQUENCES"
    if key.startswith("hydra."):
        return f"{key}: no such key"
    index = re.search(r"\.\d+\.", key)
    known = [re.sub(r"\.0\.", index[0] if index else ".", known) for known in composition.known_keys(kind)]
    candidates = [name for name in [*known, *_groups()] if not key.startswith(f"{name}.")]
    same_leaf = [name for name in known if name.endswith(f".{key}")]
    return f"{key}: no such key{_nearest(key, candidates) or _nearest(key, same_leaf, cutoff=0)}"


def _groups() -> list[str]:
    return [path.name for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra"]


def _no_choices() -> list[str]:
    """The overrides that name no choice of a group, or no key."""
    words = [word for word in sys.argv[1:] if word.partition("=")[0].lstrip("+") in ("", *_groups())]
    return [word for word in words if re.fullmatch(r"null|[-+\d.]*", word.partition("=")[2])]


def _missing_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    folder = config_dir() / group
    found = folder.rglob("*.yaml") if group else folder.glob("*.yaml")
    options = sorted(str(path.relative_to(folder).with_suffix("")) for path in found)
    there = f"; there are {', '.join(options)}" if options else "; name one of the group's, not a path"
    return f"{group or 'config'}={choice}: no such choice{_nearest(choice, options)}{there}"


def _one_line(error: Exception) -> str:
    """The error's text without what OmegaConf adds in lines of its own."""
    return " ".join(re.sub(r"\n    (full_key: |reference_type=|object_type=).*", "", str(error)).split())


def _nearest(word: str, candidates: list[str], cutoff: float = 0.5) -> str:
    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff)
    return f"; did you mean {matches[0]}?" if matches else ""
