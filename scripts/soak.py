"""Whether a long run stays as it began: `python scripts/soak.py [--minutes 60] data=parquet data.path=DIR [overrides]`.

Trains nano in a real process with every sink on (console, TensorBoard, wandb offline), evaluations and checkpoints all
the time, and looks from outside at it and its children: memory, threads, open files, processes, /dev/shm. Then SIGTERM,
and what that leaves behind. The table has a row for each sixth of the time; what the last holds against the second is
the verdict: of a step the processor's time, evaluations and checkpoints included, for the clock's says nothing where
the machine does other work too. The exit status is 1 for growth or leftovers.
"""

import argparse
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from os import sysconf
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from yxanul import __version__
from yxanul.files import write_json
from yxanul.hardware import processor
from yxanul.tracking import read_rows
from yxanul.training import checkpoint

RUN = (
    "experiment=quickstart",
    "curriculum=none",  # one length: what grows is no new stage
    "curriculum.max_seq_len=256",
    "curriculum.max_step_tokens=256",  # many steps
    "schedule.warmup=0",
    "train.tokens=100_000_000",  # it never gets there
    "evaluate.every=25",
    "evaluate.bytes=20_000",
    "checkpoint.every=50",
    "checkpoint.keep=2",
    "tracking=offline",
)
PARTS = 6
SECONDS = 15.0  # between looks; sooner in minutes fewer than that
PATIENCE = 900.0  # for the start, and for the stop: the machine may have other work
GROWTH = {"anonymous": 1.02, "threads": 1.1, "files": 1.1, "processes": 1.0, "shm": 1.1, "cpu_seconds": 1.25}
"""The last sixth against the second: what more than this is growth. Threads and files come and go with checkpoints."""


@dataclass(frozen=True)
class Sample:
    """What the processes of a run hold together at one moment; bytes, and seconds since its first step."""

    seconds: float
    step: int
    cpu_seconds: float  # of the process that trains, since it began
    rss: int  # resident memory
    anonymous: int  # of it, without files that are mapped, as the tokens are, page by page as they are read
    threads: int
    files: int
    processes: int
    shm: int  # of the whole machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="from the first step on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    parser.add_argument("--folder", type=Path, default=Path("outputs/soak"), help="of the run; must not be there yet")
    parser.add_argument("overrides", nargs="*", help="as for yxanul.train")
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"--folder {given.folder}: is there already; remove it, or name another")
    run, console = given.folder / "run", Console()
    samples, stop = soak(run, given.overrides, given.minutes)
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "train"]
    parts = sixths(samples, rows)
    ratios = {name: parts[-1][name] / parts[1][name] for name in GROWTH if parts[1][name]}
    growth = [name for name, ratio in ratios.items() if ratio > GROWTH[name]]
    console.print(table(parts))
    console.print(
        "the last sixth against the second:", ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
    )
    console.print(f"grows: {', '.join(growth) or 'nothing'}; after SIGTERM: {stop}", highlight=False)
    if given.json:
        overrides = [re.sub(r"path=.*", "path=DIR", each) for each in given.overrides]
        found = {
            "command": shlex.join(["python", "scripts/soak.py", "--minutes", f"{given.minutes:g}", *overrides]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": f"CPU, {processor()}, {platform.system()} {platform.release()}",
            "versions": {"yxanul": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "run": RUN,
            "steps": rows[-1]["step"],
            "ratios": ratios,
            "grows": growth,
            "stop": stop,
            "sixths": parts,
            "samples": [asdict(sample) for sample in samples],
        }
        write_json(given.json, found)
        console.print(f"written: {given.json}", highlight=False)
    return int(bool(growth) or not stop["clean"])


def soak(run: Path, overrides: list[str], minutes: float) -> tuple[list[Sample], dict]:
    """Train in the folder `run` for so long: what was seen on the way, and how it stopped."""
    run.parent.mkdir(parents=True)
    samples: list[Sample] = []
    seen: dict[int, str] = {}
    printed = run.with_name("printed.txt")
    command = [sys.executable, "-m", "yxanul.train", *RUN, *overrides, f"hydra.run.dir={run}"]
    with printed.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        _wait_for_a_step(run, process)
        began = time.perf_counter()
        while time.perf_counter() - began < 60 * minutes:
            time.sleep(min(SECONDS, minutes))
            if process.poll() is not None:
                raise SystemExit(f"the run ended by itself with {process.returncode}: {printed} says why")
            step = read_rows(run / "metrics.jsonl")[-1]["step"]
            samples.append(look(process.pid, time.perf_counter() - began, step, seen))
        return samples, stopped(process, run, seen)
    finally:
        process.kill()


def look(root: int, seconds: float, step: int, seen: dict[int, str]) -> Sample:
    """What a process and its descendants hold now; `seen` gains their ids, with when each began."""
    pids = _tree(root)
    held = dict.fromkeys(("rss", "anonymous", "threads", "files"), 0)
    for pid in pids:
        with suppress(OSError):  # it has just ended
            folder = Path(f"/proc/{pid}")
            stat = _stat(pid)
            seen[pid] = stat[19]
            held["files"] += len(list((folder / "fd").iterdir()))
            held["threads"] += int(stat[17])
            rss, mapped = (
                int(pages) * sysconf("SC_PAGE_SIZE") for pages in (folder / "statm").read_text().split()[1:3]
            )
            held["rss"] += rss
            held["anonymous"] += rss - mapped
    shm = shutil.disk_usage("/dev/shm").used
    cpu_seconds = sum(map(int, _stat(root)[11:13])) / sysconf("SC_CLK_TCK")
    return Sample(seconds, step, cpu_seconds, processes=len(pids), shm=shm, **held)


def stopped(process: subprocess.Popen, run: Path, seen: dict[int, str]) -> dict:
    """Stop a run by SIGTERM: how it ended, in how many seconds, and which of its processes are still there."""
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    status = process.wait(PATIENCE)
    seconds = time.perf_counter() - began
    time.sleep(2)  # for what ends with it
    left = [pid for pid, start in seen.items() if _alive(pid, start)]
    newest = checkpoint.checkpoints(run / "checkpoints")[-1]
    checkpoint.verify(newest)
    saved = checkpoint.read_state(newest).step == read_rows(run / "metrics.jsonl")[-1]["step"]
    clean = status == 128 + signal.SIGTERM and not left and saved
    return {"clean": clean, "status": status, "seconds": seconds, "processes_left": len(left), "saved": saved}


def sixths(samples: list[Sample], rows: list[dict]) -> list[dict]:
    """For each sixth of the time the medians and the maxima of what was held, and a step's seconds by the clock (the
    median) and of the processor (the mean)."""
    took = {after["step"]: after["seconds"] - before["seconds"] for before, after in pairwise(rows)}
    found = []
    for part in range(PARTS):
        ours = [s for s in samples if part <= PARTS * s.seconds / samples[-1].seconds - 1e-9 < part + 1]
        steps = range(ours[0].step + 1, ours[-1].step + 1) if ours else ()
        if not steps:
            raise SystemExit("there is a sixth of the time without a step; give it more --minutes")
        row = {"steps": len(steps), "step_seconds": statistics.median(took[step] for step in steps)}
        row["cpu_seconds"] = (ours[-1].cpu_seconds - ours[0].cpu_seconds) / len(steps)
        for name in ("rss", "anonymous", "threads", "files", "processes", "shm"):
            values = [getattr(sample, name) for sample in ours]
            row |= {name: statistics.median(values), f"{name}_max": max(values)}
        found.append(row)
    return found


def table(parts: list[dict]) -> Table:
    """A row a sixth: medians, and maxima in brackets."""
    names = {"rss": "MB", "anonymous": "MB but files", "threads": "threads", "files": "open files"}
    names |= {"processes": "processes", "shm": "MB in /dev/shm"}
    shown = Table("sixth", *names.values(), "steps", "ms a step", "of CPU", title="medians (and maxima)")
    for number, part in enumerate(parts, start=1):
        scale = {name: 1e6 if "MB" in title else 1 for name, title in names.items()}
        cells = [f"{part[name] / scale[name]:,.0f} ({part[f'{name}_max'] / scale[name]:,.0f})" for name in names]
        times = [f"{1000 * part[name]:.1f}" for name in ("step_seconds", "cpu_seconds")]
        shown.add_row(str(number), *cells, f"{part['steps']:,}", *times)
    return shown


def _tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            children[int(_stat(int(path.name))[1])].append(int(path.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, the state, on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _alive(pid: int, start: str) -> bool:
    """Whether the process that began then still runs."""
    try:
        stat = _stat(pid)
    except OSError:
        return False
    return stat[19] == start and stat[0] != "Z"


def _wait_for_a_step(run: Path, process: subprocess.Popen) -> None:
    record, deadline = run / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (record.exists() and b'"train"' in record.read_bytes()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the run did not begin: {run.with_name('printed.txt')} says why")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
