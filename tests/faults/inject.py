"""The train command with faults in it: `python -P inject.py [[INJECTION, {ARGUMENT: VALUE}], ...] OVERRIDE ...`.

A place is {"below": FOLDER}, every file operation on what lies there, or {"function": "MODULE:NAME"}, every call;
{"worker": true} beside it asks for those of child processes alone. An action is [NAME, {ARGUMENT: VALUE}].
"""

import atexit
import importlib
import itertools
import json
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
"""Audit events of Python. Each comes before its operation, so two in a row enclose what is written in between."""

HANGING = 600.0  # seconds: longer than anyone waits

# Places


def observe(place: dict[str, Any], seen: Callable[[], None]) -> None:
    """Have `seen` called before everything that happens at a place."""

    def look() -> None:
        if not place.get("worker") or multiprocessing.parent_process():
            seen()

    if "below" in place:
        below = os.path.abspath(place["below"])

        def hook(event: str, given: tuple) -> None:
            if event in OPERATIONS and f"{_path(event, given)}/".startswith(f"{below}/"):
                look()

        sys.addaudithook(hook)
    else:
        replace(place["function"], lambda original, *given, **named: look() or original(*given, **named))


def _path(event: str, given: tuple) -> str:
    """The absolute path of an operation; that of a removal may be relative to an open folder."""
    path, folder = given[0], given[-1] if event in ("os.remove", "os.rmdir") else -1
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    within = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else ""
    return os.path.abspath(os.path.join(within, os.fsdecode(path)))


def replace(name: str, by: Callable) -> None:
    """Have `by` called in the place of a function, with that as its first argument."""
    module, _, path = name.partition(":")
    *owners, attribute = path.split(".")
    owner = importlib.import_module(module)
    owner = attrgetter(".".join(owners))(owner) if owners else owner
    original = getattr(owner, attribute)
    setattr(owner, attribute, lambda *given, **named: by(original, *given, **named))


# Actions


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill_once(marker: str) -> None:
    """Unless it was done before, by whatever process."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return
    kill()


def fill(disk: str, leave: int) -> None:
    """Leave so many bytes free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(f"{disk}/filler", "wb") as file:
        file.write(bytes(max(0, free - leave)))


# Injections


def act(place: dict, call: int, action: list, delay: float = 0.0) -> None:
    """Do something, once: when something happens at a place for the `call`th time, or `delay` seconds later."""
    name, given = action
    do = partial(globals()[name], **given)
    calls = itertools.count(1)

    def seen() -> None:
        if next(calls) == call:
            threading.Timer(delay, do).start() if delay else do()

    observe(place, seen)


def count(places: dict[str, dict], file: str) -> None:
    """Count what happens at each place, and write that to a JSON file at the process's end."""
    counts = Counter(dict.fromkeys(places, 0))
    for name, place in places.items():
        observe(place, partial(counts.update, [name]))
    atexit.register(lambda: Path(file).write_text(json.dumps(counts)))


def jump(jumps: list[tuple[int, float]]) -> None:
    """Let the wall clock jump: at the call of that number, so many seconds ahead or back, for good."""
    calls, real, offsets = itertools.count(1), time.time, dict(jumps)
    offset = 0.0

    def now() -> float:
        nonlocal offset
        offset += offsets.get(next(calls), 0.0)
        return real() + offset

    time.time, time.time_ns = now, lambda: int(now() * 1e9)


def plant(steps: list[int], where: str, value: str) -> None:
    """Put a number that is not finite into the "loss" or the "gradient" of optimizer steps, the first of which is 1."""

    def update(original, model, optimizers, step, nats, *rest, **named):
        if step.index + 1 in steps and where == "loss":
            nats = nats.new_full((), float(value))
        elif step.index + 1 in steps:
            next(parameter.grad for parameter in model.parameters()).view(-1)[0] = float(value)
        return original(model, optimizers, step, nats, *rest, **named)

    replace("yxanul.training.loop:update", update)


def break_sink(sink: str, at: str, how: str, patience: float) -> None:
    """Have "tensorboard" or "wandb" raise or hang when it is built, at its third row, or when it is closed.

    Args:
        patience: seconds that the product waits for a sink at the end, so that a trial does not take its minute.
    """
    rows = itertools.count(1)

    def trouble(place: str, *_: Any, **__: Any) -> None:
        if place == at and (place != "log" or next(rows) >= 3):
            if how == "raise":
                raise ConnectionError("the disk or the network is gone")
            time.sleep(HANGING)

    log, close = partial(trouble, "log"), partial(trouble, "close")
    if sink == "tensorboard":
        broken = types.SimpleNamespace(add_scalar=log, add_text=log, flush=log, close=close)
        importlib.import_module("torch.utils.tensorboard").SummaryWriter = lambda **_: trouble("build") or broken
    else:
        broken = types.SimpleNamespace(
            define_metric=lambda *_, **__: None, log=log, finish=close, summary={}, url="nowhere"
        )
        wandb = types.ModuleType("wandb")
        wandb.init, wandb.Settings = lambda **_: trouble("build") or broken, dict
        sys.modules["wandb"] = wandb
    patient = "yxanul.tracking.background:BackgroundSink.__init__"
    replace(patient, lambda original, *given, **named: original(*given, **named | {"seconds": patience}))


if __name__ == "__main__":
    for name, given in json.loads(sys.argv.pop(1)):
        globals()[name](**given)
    sys.argv[0] = "yxanul.train"
    runpy.run_module("yxanul.train", run_name="__main__", alter_sys=True)
