"""What processes send one another, against a ring that passes numbers on and against a schedule worked through."""

from collections import Counter
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yxanul.communication import BUCKET, Ring, ddp_sending, find_ring, fsdp_sending, step_sending
from yxanul.config import Parallel
from yxanul.model import count

RUN = ("model=yxanul_197m", "tokenizer=t80k", "hardware=h100")
SECONDS = st.floats(1e-6, 1e3)
PROCESSES = st.integers(1, 512)
MICRO_BATCHES = st.lists(st.integers(1, 64), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def ddp(compose):
    return compose(*RUN, "hardware.parallel=ddp")


@pytest.fixture(scope="module")
def fsdp(compose):
    return compose(*RUN, "hardware.parallel=fsdp")


# --- the ring


def passed_around(chunks: list[list[int]]) -> Counter:
    """Reduce the processes' chunks for all, a neighbour at a time; how many chunks went over each process's link."""
    size, sent = len(chunks), Counter()
    for start, combined in ((0, lambda mine, theirs: mine + theirs), (1, lambda mine, theirs: theirs)):
        for turn in range(size - 1):
            moving = {rank: (rank + start - turn) % size for rank in range(size)}
            values = {rank: chunks[rank][chunk] for rank, chunk in moving.items()}
            for rank, chunk in moving.items():
                after = chunks[(rank + 1) % size]
                after[chunk] = combined(after[chunk], values[rank])
                sent[rank] += 1
    return sent


@given(st.integers(2, 9), st.data())
def test_a_ring_sends_what_one_that_passes_numbers_on_sends(size, data):
    chunks = [[data.draw(st.integers(-99, 99)) for _ in range(size)] for _ in range(size)]
    sums = [sum(column) for column in zip(*chunks, strict=True)]
    sent = passed_around(chunks)
    assert chunks == [sums] * size, "that one is an all-reduce"
    assert set(sent) == set(range(size))
    for number in sent.values():
        assert 2 * Ring(size, bandwidth=1).seconds(size) == pytest.approx(number)


@given(PROCESSES, st.floats(1, 1e12), st.floats(1, 1e12))
def test_a_ring_is_as_fast_as_its_bandwidth(processes, num_bytes, bandwidth):
    seconds = Ring(processes, bandwidth).seconds(num_bytes)
    assert Ring(processes, 2 * bandwidth).seconds(num_bytes) == pytest.approx(seconds / 2)
    assert seconds == pytest.approx(num_bytes / bandwidth * (1 - 1 / processes))


@pytest.mark.parametrize(
    ("nodes", "processes", "gpu", "node", "bandwidth"),
    [
        (1, 1, None, None, inf),  # alone
        (4, 1, None, None, inf),  # asked for four, and started alone
        (1, 8, 450.0, None, 450e9),
        (2, 16, 450.0, 400.0, 400e9),
        (2, 16, 32.0, 400.0, 32e9),
        (4, 4, None, 12.5, 12.5e9),  # a GPU a node
    ],
)
def test_the_slowest_link_that_is_used_counts(ddp, nodes, processes, gpu, node, bandwidth):
    hardware = replace(ddp.hardware, nodes=nodes, gpu_bandwidth=gpu, node_bandwidth=node)
    assert find_ring(hardware, processes) == Ring(processes, bandwidth)


@pytest.mark.parametrize(
    ("nodes", "gpu", "node", "key"),
    [(1, None, 400.0, "gpu_bandwidth"), (2, None, 400.0, "gpu_bandwidth"), (2, 450.0, None, "node_bandwidth")],
)
def test_an_unknown_link_is_named(ddp, nodes, gpu, node, key):
    hardware = replace(ddp.hardware, nodes=nodes, gpu_bandwidth=gpu, node_bandwidth=node)
    with pytest.raises(ValueError, match=rf"^hardware\.{key} is unknown$"):
        find_ring(hardware, 16)


# --- a step


@pytest.mark.parametrize("parallel", Parallel)
@given(PROCESSES, MICRO_BATCHES, SECONDS, st.floats(1, 1e13))
def test_a_step_takes_no_less_than_its_computing_and_than_its_sending(
    ddp, parallel, processes, micro_batches, compute, bandwidth
):
    config = replace(ddp, hardware=replace(ddp.hardware, parallel=parallel))
    sending = step_sending(config, Ring(processes, bandwidth), micro_batches, compute)
    least = max(compute, sending.seconds)
    assert least <= (compute + sending.exposed) * (1 + 1e-9)
    assert 0 <= sending.exposed <= sending.seconds * (1 + 1e-9)
    assert (sending.exposed == 0) == (processes == 1)
    faster = step_sending(config, Ring(processes, 2 * bandwidth), micro_batches, compute)
    assert faster.seconds == pytest.approx(sending.seconds / 2)
    assert faster.exposed <= sending.exposed


@given(PROCESSES, MICRO_BATCHES, SECONDS)
def test_ddp_sends_all_gradients_twice_around_whatever_the_micro_batches(ddp, processes, micro_batches, compute):
    weights = 4 * count.parameters(ddp.model, ddp.tokenizer.vocab_size)
    ring = Ring(processes, 1e9)
    assert step_sending(ddp, ring, micro_batches, compute).seconds == pytest.approx(2 * ring.seconds(weights))


@given(PROCESSES, MICRO_BATCHES, SECONDS)
def test_fsdp_sends_weights_for_each_micro_batch_and_gradients_once(fsdp, processes, micro_batches, compute):
    weights = 4 * count.parameters(fsdp.model, fsdp.tokenizer.vocab_size)
    ring = Ring(processes, 1e9)
    sent = (2 * len(micro_batches) + 1) * ring.seconds(weights)
    assert step_sending(fsdp, ring, micro_batches, compute).seconds == pytest.approx(sent)


def test_what_ends_the_backward_has_nothing_to_hide_under(compose, ddp):
    """The embedding where it is more than a bucket, else a bucket, else all of a small model."""
    ring = Ring(2, 1e9)
    wide = 4 * count.embedding_parameters(ddp.model, ddp.tokenizer.vocab_size)
    assert wide > BUCKET
    assert step_sending(ddp, ring, [1], compute=inf).exposed == pytest.approx(2 * ring.seconds(wide))
    narrow = compose("model=small_30m", "tokenizer=bpe8k")
    assert 4 * count.embedding_parameters(narrow.model, narrow.tokenizer.vocab_size) < BUCKET
    assert step_sending(narrow, ring, [1], compute=inf).exposed == pytest.approx(2 * ring.seconds(BUCKET))
    small = compose("model=nano", "tokenizer=bpe8k", "model.num_layers=1")
    assert 4 * count.parameters(small.model, small.tokenizer.vocab_size) < BUCKET
    sending = step_sending(small, ring, [1], compute=inf)
    assert sending.exposed == sending.seconds


def test_every_forward_and_backward_waits_for_a_block(fsdp):
    ring, micro_batches = Ring(2, 1e9), [4, 4, 3]
    block = 4 * count.embedding_parameters(fsdp.model, fsdp.tokenizer.vocab_size)
    assert block > 4 * count.layer_matrix_parameters(fsdp.model)
    waiting = step_sending(fsdp, ring, micro_batches, compute=inf).exposed
    assert waiting == pytest.approx((2 * len(micro_batches) + 1) * ring.seconds(block))


# --- the overlap, against a schedule worked through block by block


def gathered_before(blocks: int, sending: float, computing: float) -> float:
    """Seconds of a forward of equal blocks, each sent as early as it may: while the one before computes."""
    link = device = 0.0
    begun = 0.0
    for _ in range(blocks):
        link = max(link, begun) + sending / blocks
        begun = max(device, link)
        device = begun + computing / blocks
    return device


def sent_after(buckets: int, sending: float, computing: float) -> float:
    """Seconds of a backward whose gradients are sent bucket by bucket, each when it is full and the link is free."""
    link = 0.0
    for bucket in range(buckets):
        link = max(link, (bucket + 1) / buckets * computing) + sending / buckets
    return link


@given(st.integers(1, 40), SECONDS, SECONDS)
def test_ddp_hides_what_a_schedule_hides(buckets, sending, compute):
    backward = compute * 2 / 3
    waiting = sent_after(buckets, sending, backward) - backward
    foretold = ddp_sending(sending, sending / buckets, compute).exposed
    close = 1e-9 * (sending + compute)
    assert foretold - close <= waiting <= foretold + backward / buckets + close, "within the first bucket's computing"


@given(st.integers(1, 40), SECONDS, st.lists(SECONDS, min_size=1, max_size=4))
def test_fsdp_hides_what_a_schedule_hides(blocks, sending, computes):
    passes = [(sending, compute / 3) for compute in computes]
    passes += [(sending, compute * 2 / 3) for compute in computes[:-1]]
    passes.append((2 * sending, computes[-1] * 2 / 3))
    waiting = sum(gathered_before(blocks, sent, compute) - compute for sent, compute in passes)
    foretold = fsdp_sending(sending, sending / blocks, computes).exposed
    close = 1e-9 * (sending + sum(computes)) * len(passes)
    assert foretold - close <= waiting <= foretold + sum(computes) / blocks + close
