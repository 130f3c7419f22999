"""The device of a run: which one, how much it holds, how fast its matrix products are, how much to give it at once."""

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from yxanul.config import Device, Dtype, HardwareConfig
from yxanul.errors import ConfigError

AUTO_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens of an automatic micro-batch at most: more is no faster and only takes memory."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""

MEMORY_SHARE = 0.9
"""Of the device's memory, what a run may plan to fill."""


def select_device(device: Device) -> torch.device:
    """The torch device; raises ConfigError where CUDA is asked for and there is none."""
    if device is Device.auto:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device is Device.cuda and not torch.cuda.is_available():
        raise ConfigError(
            "hardware.device",
            "cuda",
            "there is no CUDA device here; choose hardware=cpu or hardware=auto",
        )
    return torch.device(device.value)


def planned_device(device: Device) -> torch.device:
    """The device to plan for: as `select_device`, but a GPU that is not here can be planned for."""
    return torch.device("cuda") if device is Device.cuda else select_device(device)


def memory_bytes(hardware: HardwareConfig, device: torch.device) -> int:
    """Memory of the device in bytes, from the configuration or asked of it."""
    if hardware.memory_gb is not None:
        return int(hardware.memory_gb * 2**30)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def micro_batches(
    hardware: HardwareConfig, device: torch.device, training_bytes: Callable[[int], int]
) -> Callable[[int], int]:
    """A function from sequence length to sequences of one micro-batch.

    An entry of the configuration counts as it stands. "auto", and a length without an entry, takes the
    largest power of two of tokens that fits: by the largest entry given, or by predicted memory.

    Args:
        training_bytes: tokens of a micro-batch -> predicted bytes of a training step.
    """
    entries = {} if hardware.micro_batch == "auto" else hardware.micro_batch
    given = {int(length): int(count) for length, count in entries.items() if count != "auto"}
    tokens = AUTO_TOKENS[device.type]
    limit = MEMORY_SHARE * memory_bytes(hardware, device)
    while tokens > 1 and training_bytes(tokens) > limit:
        tokens //= 2

    def sequences(seq_len: int) -> int:
        if seq_len in given:
            return given[seq_len]
        automatic = str(seq_len) in entries or not given
        budget = tokens if automatic else max(length * count for length, count in given.items())
        return max(1, budget // seq_len)

    return sequences


def peak_flops(hardware: HardwareConfig, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product in `dtype`: given by the hardware's configuration, or measured here."""
    name = Dtype.bf16 if dtype is torch.bfloat16 else Dtype.fp32
    given = getattr(hardware.peak_tflops, name.value)
    return given * 1e12 if given is not None else measure_peak(device, dtype)


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best FLOP/s of several square matrix products in `dtype`; takes well under a second."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: left @ right, device, repeats=8)


def best_seconds(function: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The least time that one call takes on the device, after one that is not counted."""
    function()
    best = math.inf
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has always."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_in_use(device: torch.device) -> float:
    """Peak memory in GiB: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def set_deterministic(wanted: bool) -> None:
    """Whether this process is to compute the same bits each time; to be called before it uses a GPU.

    An operation for which torch has no such kernel then raises RuntimeError.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or sums may depend on which workspace was free
    torch.use_deterministic_algorithms(wanted)


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, have the C library keep what tensors free for the next ones instead of giving it back to the system.

    A step frees and takes hundreds of megabytes, and fresh pages cost a fifth of its time. Only glibc can be told;
    elsewhere nothing happens. On a GPU torch's own allocator does this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if device.type == "cpu" and mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def describe(device: torch.device) -> str:
    """The device in words, for the plan and the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "a CUDA device"
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
