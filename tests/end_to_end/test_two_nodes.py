"""Two nodes with a torchrun on each: network namespaces of Linux, on the two ends of a cable."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from yxanul import hardware
from yxanul.tracking import read_rows

ADDRESSES = ("10.77.0.1", "10.77.0.2")
TORCHRUN = (
    *("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
    *("--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400"),
)
"""`is_host` and `local-addr`, added for each node, say what nodes with names of their own find out."""


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """The names of two namespaces; in each, the cable's end is the device `cable`."""
    if not shutil.which("ip"):
        pytest.skip("nodes on one machine need the command ip")
    names = (f"yxanul{os.getpid()}first", f"yxanul{os.getpid()}second")
    try:
        for name in names:
            ip("netns", "add", name)
        peer = ("type", "veth", "peer", "name", "cable", "netns", names[1])
        ip("link", "add", "cable", "netns", names[0], *peer)
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network namespaces can be made here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def start_nodes(start, nodes, tmp_path):
    """Starts the run in `tmp_path / "run"` on both nodes, with more overrides; returns their torchruns."""
    started = []

    def begin(*overrides: str) -> list[subprocess.Popen]:
        for name, address in zip(nodes, ADDRESSES, strict=True):
            here = (f"--local-addr={address}", f"--rdzv-conf=is_host={int(address == ADDRESSES[0])}")
            process = start(
                *(*overrides, f"hydra.run.dir={tmp_path / 'run'}"),
                program=(*TORCHRUN, *here, "-m", "yxanul.train"),
                inside=("ip", "netns", "exec", name),
                GLOO_SOCKET_IFNAME="cable",
            )
            started.append(process)
        return started

    yield begin
    for process in started:
        process.terminate()  # it stops its worker
        process.communicate(timeout=60)


def worker(torchrun: subprocess.Popen) -> int:
    """The process that trains on a torchrun's node."""
    [process] = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    return int(process)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row]


def test_two_nodes_learn_what_one_process_does(start_nodes, undisturbed, tmp_path):
    first, second = start_nodes()
    (out, err), (other_out, other_err) = (process.communicate(timeout=120) for process in (first, second))
    assert (first.returncode, second.returncode) == (0, 0), err + other_err
    assert f"on 2 x {hardware.processor()}, 1 thread" in out and other_out == ""
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed[1]), rel=1e-5)


def test_a_process_that_is_killed_on_one_node_ends_the_run_on_the_other(start_nodes, wait_for, tmp_path):
    first, second = start_nodes("train.tokens=2000000", "checkpoint.every=100000", "evaluate.every=100000")
    record = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: record.exists() and record.read_bytes().count(b"\n") > 5, first)
    os.kill(worker(second), signal.SIGKILL)
    began = time.monotonic()
    _, err = first.communicate(timeout=60)
    assert first.returncode and second.wait(60)
    assert time.monotonic() - began < 30
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line == "error: process 0 of 2: another process of this run has died; see its own error"
