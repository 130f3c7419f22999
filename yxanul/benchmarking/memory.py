"""Peak memory of what torch allocates while a function runs, in the same meaning on every device."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object], device: torch.device, held: Iterable[Tensor]) -> int:
    """The most bytes of tensors that live at once while `function` runs.

    A GPU's allocator knows, and counts everything on the GPU. On a CPU, where nobody keeps count, torch's
    profiler sees what is allocated from the start of the call on.

    Args:
        held: what lives before and throughout and is to be counted on a CPU (weights, optimizer state); views
            of one storage count once.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
    now = peak = sum(storage.nbytes() for storage in storages.values())
    living: dict[int, int] = {}
    for address, change in _changes(function):
        if change < 0:
            # What is freed unseen was made before, and the profiler may even have its size wrong: it was never added.
            now -= living.pop(address, 0)
            continue
        living[address] = change
        now += change
        peak = max(peak, now)
    return peak


def _changes(function: Callable[[], object]) -> list[tuple[int, int]]:
    """(address, bytes) of every allocation on the CPU while `function` runs, and of every release, bytes negative."""
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _without_notices():
        profiler.start()
    try:
        function()
    finally:
        with _without_notices():
            profiler.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return [(event["args"]["Addr"], event["args"]["Bytes"]) for event in memory]


@contextmanager
def _without_notices() -> Iterator[None]:
    """Leave out of stderr that the profiler starts and stops, which it tells at a level above its errors."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            others = [line for line in said if not line.startswith(b"USDT:")]
            os.write(2, b"".join(others))
