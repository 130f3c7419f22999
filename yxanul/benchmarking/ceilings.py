"""What this machine can do at best: the limits that a training step is measured against."""

from dataclasses import dataclass

import torch

from yxanul import hardware
from yxanul.config import Dtype

COPIED_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
"""Far more than any cache holds."""


@dataclass(frozen=True)
class Ceilings:
    """Measured limits: FLOP/s of large matrix products by dtype, bytes/s of a copy (read and written)."""

    matmul_flops: dict[str, float]
    copy_bytes_per_second: float


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure them now, in a few seconds."""
    dtypes = {Dtype.fp32.value: torch.float32, Dtype.bf16.value: torch.bfloat16}
    return Ceilings({name: hardware.measure_peak(device, dtype) for name, dtype in dtypes.items()}, _copy_speed(device))


def higher(first: Ceilings, second: Ceilings) -> Ceilings:
    """The higher of two measurements of each limit: what a machine has shown it can do."""
    return Ceilings(
        {name: max(flops, second.matmul_flops[name]) for name, flops in first.matmul_flops.items()},
        max(first.copy_bytes_per_second, second.copy_bytes_per_second),
    )


def _copy_speed(device: torch.device) -> float:
    size = COPIED_BYTES[device.type]
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / hardware.best_seconds(lambda: target.copy_(source), device)
