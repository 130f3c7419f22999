"""What the processes of a step send one another, in seconds, foretold from the configuration alone.

By the cost of a ring, which sends the least that point-to-point sending can (Patarasuk & Yuan 2009, "Bandwidth
optimal all-reduce algorithms for clusters of workstations"; NVIDIA's nccl-tests, doc/PERFORMANCE.md, measures "bus
bandwidth" against the same): of n processes each passes (n-1)/n of the bytes on to its neighbour to gather or to
reduce and scatter them, and twice that to reduce them for all.

Assumed: bandwidths are nominal and reached in full, latency is nothing, all processes are equally fast, and sending
takes nothing from computing. NCCL comes within some 5% of the cards on large messages (192 of 200 GB/s between DGX
A100, NVIDIA/nccl issue 812); what is foretold is the least to expect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from yxanul.config import Config, HardwareConfig, Parallel
from yxanul.model import count

FLOAT = 4
"""Bytes of a float32, as which weights and gradients are sent."""

BUCKET = 25 * 2**20
"""Bytes of gradients that torch's DistributedDataParallel sends together, its `bucket_cap_mb`."""

FORWARD, BACKWARD = 1 / 3, 2 / 3
"""Shares of a micro-batch's work."""


@dataclass(frozen=True)
class Sending:
    """Seconds of one step: of all that is sent, and of them those in which processes wait for it."""

    seconds: float
    exposed: float


@dataclass(frozen=True)
class Ring:
    """Processes that pass bytes on to one another, each `bandwidth` bytes a second."""

    processes: int
    bandwidth: float

    def seconds(self, num_bytes: float) -> float:
        """To gather so many bytes, or to reduce and scatter them; to reduce them for all takes twice as long."""
        return (self.processes - 1) / self.processes * num_bytes / self.bandwidth


def find_ring(hardware: HardwareConfig, processes: int) -> Ring:
    """The ring of so many processes on the nodes of the configuration, at the speed of its slowest link.

    Over several nodes a ring enters and leaves each by one network card. NCCL lays a ring by each card and shares the
    bytes among them (NVIDIA/nccl-tests issue 277): together they send as fast as all cards of a node, and every
    GPU passes on the bytes of all rings, as fast as it can. So the lesser of both counts. On two nodes NCCL may take
    a tree instead, which sends less between them (NVIDIA/nccl issue 812).

    Raises:
        ValueError: a bandwidth that is needed is unknown.
    """
    nodes, links = min(hardware.nodes, processes), {}
    if processes > nodes:
        links["gpu_bandwidth"] = hardware.gpu_bandwidth
    if nodes > 1:
        links["node_bandwidth"] = hardware.node_bandwidth
    for key, bandwidth in links.items():
        if bandwidth is None:
            raise ValueError(f"hardware.{key} is unknown")
    return Ring(processes, 1e9 * min(links.values(), default=math.inf))


def step_sending(config: Config, ring: Ring, micro_batches: Sequence[int], compute: float) -> Sending:
    """What one optimizer step sends, by `hardware.parallel`.

    The embedding's gradient is there when the backward ends, for the lookup comes last. With the head, its own or tied,
    it is one block of FSDP, whose weights are what the forward begins with.

    Args:
        micro_batches: sequences of each micro-batch of a process.
        compute: seconds that each process computes in the step.
    """
    vocab = config.tokenizer.vocab_size
    weights = FLOAT * count.parameters(config.model, vocab)
    embedding = FLOAT * count.embedding_parameters(config.model, vocab)
    computes = [compute * sequences / sum(micro_batches) for sequences in micro_batches]
    if config.hardware.parallel is Parallel.fsdp:
        ends = embedding + FLOAT * count.head_parameters(config.model, vocab)
        block = max(ends, FLOAT * count.layer_matrix_parameters(config.model))
        return fsdp_sending(ring.seconds(weights), ring.seconds(block), computes)
    last_bucket = min(weights, max(embedding, BUCKET))
    return ddp_sending(2 * ring.seconds(weights), 2 * ring.seconds(last_bucket), computes[-1])


def ddp_sending(gradients: float, last_bucket: float, compute: float) -> Sending:
    """Gradients are reduced for all once a step, bucket by bucket under the backward of the last micro-batch.

    Args:
        gradients: seconds to send all of them.
        last_bucket: seconds to send the last of the buckets, which is full when the backward has ended.
        compute: seconds of the last micro-batch.
    """
    return Sending(gradients, _exposed(gradients, last_bucket, BACKWARD * compute))


def fsdp_sending(weights: float, block: float, computes: Sequence[float]) -> Sending:
    """Weights are gathered before each forward and again before each backward, and scattered when used.

    The last micro-batch's backward also reduces and scatters the gradients. A block is gathered while the one before
    it computes, so of each forward and backward one has nothing to hide under.

    Args:
        weights: seconds to gather all of them, and as many to reduce and scatter their gradients.
        block: seconds for the largest block.
        computes: seconds of each micro-batch.
    """
    *earlier, last = computes
    waits = [_exposed(weights, block, FORWARD * compute) for compute in computes]
    waits += [_exposed(weights, block, BACKWARD * compute) for compute in earlier]
    waits.append(_exposed(2 * weights, 2 * block, BACKWARD * last))
    return Sending((2 * len(computes) + 1) * weights, sum(waits))


def _exposed(sending: float, alone: float, compute: float) -> float:
    """What is not hidden of sending: `alone` has nothing to hide under, the rest hides under the computing."""
    return max(alone, sending - compute)
