"""Choosing the device and how much to give it at once."""

import itertools
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yxanul import hardware
from yxanul.config import Device, HardwareConfig, Parallel, PeakConfig
from yxanul.errors import ConfigError
from yxanul.hardware import MEMORY_SHARE, micro_batches, select_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MEGABYTE = 2**20


def config(memory_gb=1.0, peak=None, device=Device.cpu, **micro_batch):
    """Entries of `micro_batch` are given as n128=4."""
    entries = {name[1:]: count for name, count in micro_batch.items()}
    return HardwareConfig(
        device=device,
        memory_gb=memory_gb,
        compute_capability=None,
        peak_tflops=PeakConfig(peak, peak and 2 * peak),
        utilization=0.4,
        micro_batch=entries,
        compile="auto",
        deterministic=False,
        recompute=0.0,
        nodes=1,
        gpus_per_node=1,
        parallel=Parallel.ddp,
        gpu_bandwidth=None,
        node_bandwidth=None,
    )


def per_token(number):
    """A prediction of so many bytes for each token."""
    return lambda tokens: tokens * number


def test_an_entry_counts_as_it_stands():
    """Even where it is predicted not to fit: the user knows better."""
    sequences = micro_batches(config(n128=1000, n256=3), CPU, per_token(MEGABYTE))
    assert (sequences(128), sequences(256)) == (1000, 3)


def test_a_length_without_an_entry_gets_the_tokens_of_the_largest_entry():
    """Whatever was predicted, for someone has tried that."""
    sequences = micro_batches(config(n128=10, n256=3, n512="auto"), CPU, per_token(MEGABYTE))
    assert [sequences(length) for length in (8, 64, 1024, 2048)] == [160, 20, 1, 1]


@pytest.mark.parametrize(
    "entries", [{"64": "auto", "2048": "auto", "128": 5}, {}, "auto"], ids=["entries", "no entries", "all"]
)
def test_automatic_is_the_largest_power_of_two_of_tokens_that_fits(entries):
    """0.9 of 1 GiB holds 921 tokens of a MiB each, hence 512."""
    sequences = micro_batches(replace(config(), micro_batch=entries), CPU, per_token(MEGABYTE))
    assert (sequences(64), sequences(2048)) == (8, 1)


@given(st.integers(1, 2**32), st.integers(1, 4096), st.sampled_from([CPU, CUDA]))
def test_automatic_fits_and_twice_that_does_not(bytes_a_token, seq_len, device):
    """Unless twice that is more than is any faster; a single sequence is tried in any case."""
    automatic = micro_batches(config(memory_gb=8.0), device, per_token(bytes_a_token))
    tokens, limit, most = automatic(1), MEMORY_SHARE * 8 * 2**30, hardware.AUTO_TOKENS[device.type]
    assert tokens == 1 or tokens * bytes_a_token <= limit
    assert tokens == most or 2 * tokens * bytes_a_token > limit
    assert tokens & (tokens - 1) == 0
    assert automatic(seq_len) == max(1, tokens // seq_len)


def test_cuda_without_a_gpu_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"hardware\.device=cuda.*hardware=cpu"):
        select_device(Device.cuda)
    assert select_device(Device.auto) == select_device(Device.cpu) == CPU
    assert hardware.planned_device(Device.cuda).type == "cuda"
    assert hardware.describe(CUDA) == "a CUDA device"


def test_a_cpu_is_told_by_its_name_and_threads():
    assert hardware.describe(CPU) == f"{hardware.processor()}, 1 thread"


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device(Device.auto).type == select_device(Device.cuda).type == "cuda"
    assert select_device(Device.cpu) == CPU


def test_memory_is_as_given_or_that_of_the_machine():
    assert hardware.memory_bytes(config(memory_gb=1.5), CPU) == 3 * 2**29
    total = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert hardware.memory_bytes(config(memory_gb=None), CPU) == pytest.approx(1024 * int(total[1]), rel=0.01)


def test_peak_is_as_given_for_each_dtype():
    given_peaks = config(peak=3.0)
    assert hardware.peak_flops(given_peaks, CPU, torch.float32) == 3e12
    assert hardware.peak_flops(given_peaks, CPU, torch.bfloat16) == 6e12


def test_peak_is_measured_where_none_is_given(monkeypatch):
    """More than a billion and less than any CPU reaches; it is the work over the least of several times."""
    assert 1e9 < hardware.peak_flops(config(), CPU, torch.float32) < 1e14
    seconds = itertools.cycle([3.0, 0.25, 2.0, 1.0])
    clock = itertools.accumulate(value for pause in itertools.repeat(100.0) for value in (pause, next(seconds)))
    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert hardware.measure_peak(CPU, torch.float32) == 2 * 1024**3 / 0.25


def test_memory_in_use_is_the_peak_of_this_process():
    """As the kernel counts it; a process that started this one may have left its own peak, of its own size."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert 0.95 < hardware.memory_in_use(CPU) / (int(peak[1]) / 2**20) < 10


@pytest.mark.gpu
def test_a_gpu_is_measured_and_described():
    assert 1e12 < hardware.measure_peak(CUDA, torch.bfloat16) < 1e16
    assert hardware.memory_bytes(config(memory_gb=None), CUDA) > 2**30
    assert hardware.describe(CUDA) == torch.cuda.get_device_name()
    assert hardware.memory_in_use(CUDA) > 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_for_the_next_tensors():
    """In a process of its own: with it, the same tensors again touch hardly a page that was not there before."""
    program = (
        "import resource, sys, torch; from yxanul import hardware\n"
        "if sys.argv[1] == 'kept': hardware.keep_freed_memory(torch.device('cpu'))\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def use(): return [torch.ones(2**22) for _ in range(8)]\n"  # 16 MiB each
        "use(); before = faults(); use(); print(faults() - before)"
    )
    pages = 8 * 2**24 / 4096
    fresh, kept = (
        int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, check=True).stdout)
        for how in ("fresh", "kept")
    )
    assert kept < 0.2 * pages and fresh > 0.5 * pages
