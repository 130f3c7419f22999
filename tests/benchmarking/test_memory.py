"""The measured peak of functions whose allocations are known."""

import os

import pytest
import torch

from yxanul.benchmarking.memory import peak_bytes

CPU = torch.device("cpu")
MIB = 2**20


def block(mib, device=CPU):
    return torch.empty(mib * MIB, dtype=torch.uint8, device=device)


def rise_and_fall(device=CPU):
    """5 MiB at most: 1 + 2, then 2 + 3, then 3."""
    first, second = block(1, device), block(2, device)
    del first
    third = block(3, device)
    del second
    assert third.numel() == 3 * MIB


def test_what_lives_at_once_is_counted_and_nothing_else():
    assert peak_bytes(rise_and_fall, CPU, []) == 5 * MIB


def test_what_is_freed_counts_once_however_often_it_is_made():
    def again_and_again():
        for _ in range(10):
            rise_and_fall()

    assert peak_bytes(again_and_again, CPU, []) == 5 * MIB


def test_held_tensors_count_over_it_and_views_of_one_once():
    held = block(7)
    assert peak_bytes(rise_and_fall, CPU, [held, held[: 3 * MIB], held.view(torch.int32)]) == 12 * MIB


def test_without_allocations_the_peak_is_what_is_held():
    assert peak_bytes(lambda: None, CPU, [block(2)]) == 2 * MIB


def test_what_lived_before_and_is_not_held_counts_neither_when_made_nor_when_freed():
    """Also where it lies in the place of a block that an earlier measurement saw and nobody saw freed."""
    kept = []
    for _ in range(20):
        peak_bytes(lambda: kept.append(block(3)), CPU, [])
        kept.clear()
        kept.append(torch.empty(3 * MIB - 64, dtype=torch.uint8))

        def free_old():
            first = block(1)
            kept.clear()
            assert (first.numel(), block(1).numel()) == (MIB, MIB)

        assert peak_bytes(free_old, CPU, []) == 2 * MIB


def test_what_an_operator_allocates_inside_is_seen():
    """A sum of a float32 and a bf16 tensor makes a float32 copy of the latter."""
    total = torch.zeros(MIB)
    addend = torch.ones(MIB, dtype=torch.bfloat16)
    assert peak_bytes(lambda: total.add_(addend), CPU, [total, addend]) == (4 + 2 + 4) * MIB


def test_the_profiler_is_silent_and_the_function_is_not(capfd):
    def fails():
        os.write(2, b"said\n")
        raise RuntimeError("an error")

    with pytest.raises(RuntimeError, match="an error"):
        peak_bytes(fails, CPU, [])
    assert peak_bytes(rise_and_fall, CPU, []) == 5 * MIB, "an error ends the profiling"
    assert capfd.readouterr().err == "said\n"


@pytest.mark.gpu
def test_a_gpu_means_the_same():
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    held = block(7, device)
    assert peak_bytes(lambda: rise_and_fall(device), device, [held]) - before == 12 * MIB
