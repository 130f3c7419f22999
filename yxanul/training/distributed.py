"""Several processes that train one run: who they are, how they meet, what they tell one another, how they end.

There is one process a GPU, started by torchrun, by submitit's tasks or by srun, and recognized by `rank.find_rank`.
What could differ between them (timed kernels, memory that is free, files) is decided by the first and told to the
others; decisions that each may cause (a signal) are taken by all at the same place.
"""

import itertools
import os
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from yxanul.errors import LostProcess, UserError
from yxanul.rank import find_rank

T = TypeVar("T")

MEETING = timedelta(minutes=5)
"""For all processes to arrive: a scheduler starts them within seconds of one another, and nodes import slowly."""

PATIENCE = timedelta(days=2)
"""For one collective operation: the first may tokenize for hours. Who dies is noticed by the guard instead."""

GUARD_SECONDS = 1.0

SILENCE = 300
"""So many of the guard's rounds is a process waited for that gives no sign: its node stands still or is cut off.

Rounds, not seconds: a job that is suspended as a whole goes on."""

FAILED = "failed"
"""What a process that fails sets in the store that all of them see."""

GONE = re.compile("connection (closed|reset)|broken pipe", re.IGNORECASE)
"""In errors of operations with a process that was killed."""


class ToldElsewhere(Exception):
    """Another process failed, and says itself why: this one only has to leave."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them; a single process is a world that needs no communication.

    Attributes:
        rank: of this process, from 0.
        local_rank: among those on this node: the index of its GPU.
        size: how many processes there are.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers; on the host alone, so no device waits for it."""
        return self._agree(number, dist.ReduceOp.MAX)

    def total(self, number: int) -> int:
        """The sum of the processes' numbers, likewise."""
        return self._agree(number, dist.ReduceOp.SUM)

    def add_up(self, tensor: Tensor) -> None:
        """Have a tensor on the device hold the sum of the processes' tensors."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def as_first(self, tensor: Tensor) -> Tensor:
        """The first's tensor, on all processes; all have one of that shape."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def from_first(self, function: Callable[[], T]) -> T:
        """What `function` returns on the first process, where alone it is called, or the error that it raised.

        Raises:
            ToldElsewhere: on the others, when the first raised.
        """
        if self.size == 1:
            return function()
        error, message = None, [None, None]
        if self.first:
            try:
                message[0] = function()
            except Exception as raised:
                error, message = raised, [None, repr(raised)]
        dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        if error is not None:
            raise error
        if message[1] is not None:
            raise ToldElsewhere(message[1])
        return message[0]

    def after_first(self, function: Callable[[], T]) -> T:
        """What `function` returns on each process; the first is ahead, so the others find in the cache what it made."""
        made: list[T] = []
        self.from_first(lambda: made.append(function()))
        return made[0] if made else function()

    def _agree(self, number: int, operation: dist.ReduceOp) -> int:
        if self.size == 1:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, operation)
        return int(tensor)


ALONE = World()


def meeting_point(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Address and port at which the processes meet: as set, else the job's first node and a port by the job's number.

    Jobs that share a node have different numbers, so they do not meet one another.
    """
    if "SUBMITIT_LOCAL_JOB_ID" in environ:
        job, nodes = environ["SUBMITIT_LOCAL_JOB_ID"], ""
    else:
        job = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    address = environ.get("MASTER_ADDR") or first_node(nodes) or "127.0.0.1"
    port = environ.get("MASTER_PORT") or random.Random(job).randint(20_000, 60_000)
    return address, int(port)


def first_node(nodes: str) -> str:
    """The first of a list of nodes as SLURM writes it: `gpu[07-09,12],login` begins with gpu07."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", re.match(r"(?:\[[^]]*\]|[^,\[])*", nodes)[0])


_meetings = itertools.count()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world of this process, in communication with the others until the context is left.

    Left by an error, it tells the others, who leave at once; else it waits for them.

    Raises:
        UserError: the processes cannot meet.
    """
    world = World(*find_rank())
    if world.size == 1:
        yield world
        return
    if device.type == "cuda":
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())  # srun may show each task a GPU of its own
    store = dist.PrefixStore(f"yxanul{next(_meetings)}", _meet(world))  # a process may train several runs, one by one
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=PATIENCE,
    )
    try:
        with _guard(world, store):
            yield world
            world.total(0)
    finally:
        dist.destroy_process_group()


def _meet(world: World) -> dist.Store:
    address, port = meeting_point()
    try:
        return next(dist.rendezvous(f"tcp://{address}:{port}", world.rank, world.size, timeout=MEETING))[0]
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"process {world.rank} of {world.size} cannot meet the others at {address}:{port} ({reason}); "
            "start all of them, with one MASTER_ADDR and a free MASTER_PORT"
        ) from error


@contextmanager
def _guard(world: World, store: dist.Store) -> Iterator[None]:
    """Watch for a process that fails, and end this one then: it may wait on a device for an answer that never comes.

    A process that is killed cannot tell; then a launcher ends the others, as does a connection that breaks. One
    that is cut off breaks no connection: the first misses its signs of life, and it the answers of the first.
    """
    leaving = threading.Event()

    def leave(lost: LostProcess) -> None:
        if not leaving.wait(5 * GUARD_SECONDS):  # most leave by themselves
            print(f"error: {lost}", file=sys.stderr, flush=True)
            os._exit(LostProcess.status)

    def watch() -> None:
        rounds = _rounds(world, store)
        while not leaving.wait(GUARD_SECONDS):
            unanswered = threading.Timer(SILENCE * GUARD_SECONDS, leave, [_silent(world, 0)])
            unanswered.daemon = True
            unanswered.start()
            lost = next(rounds)
            unanswered.cancel()
            if lost:
                leave(lost)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        told = isinstance(error, RuntimeError) and (GONE.search(str(error)) or _failed(store))
        with suppress(RuntimeError):
            store.set(FAILED, str(world.rank))
        if told:
            raise _lost(world) from error
        raise
    finally:
        leaving.set()
        thread.join(5 * GUARD_SECONDS)  # one that asks the store while Python ends would abort the process


def _rounds(world: World, store: dist.Store) -> Iterator[LostProcess | None]:
    """What the guard finds in each of its rounds: nothing, or why this process cannot go on."""
    before = [0] * world.size
    for turn in itertools.count(1):
        lost = None
        try:
            store.add(f"signs{world.rank}", 1)
            if store.check([FAILED]):
                lost = _lost(world)
            elif world.first and turn % SILENCE == 0:
                now = [store.add(f"signs{rank}", 0) for rank in range(world.size)]
                silent = [rank for rank in range(world.size) if now[rank] == before[rank]]
                lost = _silent(world, silent[0]) if silent else None
                before = now
        except RuntimeError:  # the process that keeps the store is gone
            lost = _lost(world)
        yield lost


def _failed(store: dist.Store) -> bool:
    """Whether a process has failed; the one that keeps the store takes it along."""
    try:
        return store.check([FAILED])
    except RuntimeError:
        return True


def _lost(world: World) -> LostProcess:
    return LostProcess(f"process {world.rank} of {world.size}: another process of this run has died; see its own error")


def _silent(world: World, rank: int) -> LostProcess:
    return LostProcess(
        f"process {world.rank} of {world.size}: process {rank} has given no sign of life for "
        f"{SILENCE * GUARD_SECONDS:.0f} s; its node stands still, or the network to it is cut"
    )
