"""The pieces of an optimizer step: data to the device, the gradient of micro-batches, the update.

Nothing here waits for the device: batches are made ahead on the host and copied from pinned memory, a step that
is not finite is skipped by the optimizers on the device itself, and what a step found is read when somebody asks.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yxanul.curriculum import Step
from yxanul.data.stream import MicroBatch, Stream, prefetch
from yxanul.model.attention import Attention
from yxanul.model.transformer import Packed, Transformer

PREFETCH = 4


@dataclass(frozen=True)
class Batch:
    """A micro-batch as the model takes it.

    Attributes:
        targets: (tokens,) int64, the token that follows each.
        bytes: of text that the targets stand for.
    """

    packed: Packed
    targets: Tensor
    bytes: int

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The same with `function`, for example a copy to a device, applied to its tensors."""
        return Batch(self.packed.map(function), function(self.targets), self.bytes)


@dataclass(frozen=True)
class Found:
    """What a step found, still on the device: summed loss in nats and the gradient's norm before clipping."""

    nats: Tensor
    grad_norm: Tensor
    bytes: int

    def read(self) -> tuple[float, float]:
        """(nats, gradient norm); waits until the device has computed them."""
        return tuple(torch.stack([self.nats, self.grad_norm]).tolist())


def make_batch(batch: MicroBatch, attention: Attention) -> Batch:
    """A micro-batch of the stream as tensors on the host, with the layout that `attention` needs."""
    tokens, positions, targets = map(torch.from_numpy, (batch.tokens, batch.positions, batch.targets))
    layout = attention(batch.segment_starts, len(batch.tokens), batch.seq_len)
    return Batch(Packed(tokens, positions, layout), targets, batch.bytes)


def feed(
    stream: Stream,
    attention_of: Callable[[int], Attention],
    places: Iterable[tuple[Step, int]],
    device: torch.device,
    rank: int = 0,
) -> Iterator[Batch]:
    """A process's micro-batches at `places` (step, index) on the device, each made ahead by a background thread."""

    def make(place: tuple[Step, int]) -> Batch:
        batch = make_batch(stream.micro_batch(*place, rank), attention_of(place[0].seq_len))
        return batch.map(Tensor.pin_memory) if device.type == "cuda" else batch

    for batch in prefetch(make, places, PREFETCH):
        yield batch.map(lambda tensor: tensor.to(device, non_blocking=True))


def add_gradient(model: nn.Module, batch: Batch, step_tokens: float) -> Tensor:
    """Add the gradient of the micro-batch's share of the step's mean loss; returns its summed loss in nats."""
    loss = model(batch.packed, batch.targets)
    (loss / step_tokens).backward()
    return loss.detach()


def update(
    model: Transformer,
    optimizers: Sequence[torch.optim.Optimizer],
    step: Step,
    nats: Tensor,
    num_bytes: int,
    most: float = math.inf,
) -> Found:
    """Clip the gathered gradient and take the optimizer step; the device skips one that is not finite.

    Args:
        most: nats above which it is skipped too.
    """
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), step.grad_clip)
    if hasattr(grad_norm, "full_tensor"):  # of shares that several processes hold
        grad_norm = grad_norm.full_tensor()
    bad = (~torch.isfinite(nats + grad_norm) | (nats > most)).float()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = step.lr * group["lr_scale"]
        optimizer.found_inf = bad  # as torch's GradScaler tells them
        optimizer.step()
    return Found(nats, grad_norm, num_bytes)
