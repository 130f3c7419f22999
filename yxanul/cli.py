"""The command line: Hydra composes the configuration, and whatever goes wrong is one line.

Hydra prints composition errors over several lines and job errors with a traceback. Here it is told to raise
instead (`HYDRA_FULL_ERROR`, its own switch), and the error is put into one line that names the key, the
value and the nearest valid choice. A user who sets HYDRA_FULL_ERROR=1 gets the whole traceback.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from yxanul import config as schema
from yxanul.errors import UserError


def config_dir() -> Path:
    """The conf/ tree: inside the package when installed from a wheel, beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "conf"


def run(task: Callable[[schema.Config], int], config_name: str) -> int:
    """Compose `config_name` with the command line's overrides and run `task` on it.

    Returns the exit status: what the task returned, or 1 after a line on stderr for an error that the user
    can mend. With `--multirun` it is the worst status of the jobs.
    """
    schema.register()
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    statuses = []

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)
    def job(composed) -> None:
        try:
            statuses.append(task(schema.parse(composed)))
        except (UserError, OmegaConfBaseException) as error:
            if full_error:
                raise
            statuses.append(1)  # and the other jobs of a sweep go on
            report(error)

    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        report(error)
        return 1
    finally:
        GlobalHydra.instance().clear()
    return max(statuses, default=0)


def report(error: Exception) -> None:
    """Print an error that the user can mend as one line on stderr."""
    print(f"error: {explain(error)}", file=sys.stderr)


def explain(error: Exception) -> str:
    """An error of ours, Hydra's or OmegaConf's as one line with the key, the value and the nearest choice."""
    text = str(error)
    if isinstance(error, UserError):
        return " ".join(text.split())
    if isinstance(error, MissingConfigException):
        return _missing_choice(error, text)
    override = re.search(r"Could not override '([^']+)'", text)
    leaf = re.search(r"Key '([^']+)' (?:is )?not in ", text)
    key = re.search(r"full_key: (\S+)", text)
    if override:
        return _unknown_key(override[1])
    if leaf and key:
        return f"{key[1]}: no such key{_nearest(leaf[1], [known.rpartition('.')[2] for known in schema.known_keys()])}"
    lines = [
        line
        for line in text.splitlines()
        if line.strip() and "Error merging override" not in line and not line.startswith("See ")
    ]
    return f"{key[1]}: {lines[0]}" if key else " ".join(" ".join(lines).split())


def _unknown_key(key: str) -> str:
    if re.fullmatch(r"hardware\.micro_batch\.\d+", key):
        return f"{key}: this hardware has no entry for that length; add one with +{key}=SEQUENCES"
    groups = [path.name for path in config_dir().iterdir() if path.is_dir()]
    return f"{key}: no such key{_nearest(key, schema.known_keys() + groups)}"


def _missing_choice(error: MissingConfigException, text: str) -> str:
    wanted = re.search(r"Could not find '([^']+)'", text)
    name = wanted[1] if wanted else str(error.missing_cfg_file)
    group, _, choice = name.rpartition("/")
    options = sorted(error.options or [])
    return f"{group}={choice}: no such choice{_nearest(choice, options)}; there are {', '.join(options)}"


def _nearest(word: str, candidates: list[str]) -> str:
    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""
