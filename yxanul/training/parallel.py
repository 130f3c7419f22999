"""How several processes share a model: each holds all of it (ddp) or a share of every weight (fsdp).

Either way a process takes its own sequences of each step, and gradients are averaged over the processes in the
backward of a step's last micro-batch alone. Everything stays in float32 between the processes, whatever the layers
compute in, so that a run learns the same however many share it.
"""

import logging
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from yxanul.model.transformer import Transformer
from yxanul.training.distributed import World

Accumulating = Callable[[bool], nn.Module]
"""Whether a micro-batch is its step's last -> the model to call for it."""


def shard(model: Transformer, device: torch.device, world: World) -> None:
    """Leave this process its share of every weight (FSDP2); a layer's are gathered while it computes.

    To be called before there is an optimizer: parameters are replaced by DTensors, split along their first dimension.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # takes most of a second

    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # it warns of what gloo does instead
    mesh = dist.init_device_mesh(device.type, (world.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # else an evaluation would leave the embedding whole
    for name in ("token_losses", "next_token_logits"):
        register_fsdp_forward_method(model, name)


def accumulating(model: Transformer, world: World) -> Accumulating:
    """The way to call a model, sharded or not, so that only a step's last backward speaks with the other processes."""
    if world.size == 1:
        return lambda last: model
    if hasattr(model, "set_requires_gradient_sync"):  # it is sharded
        return lambda last: _sharded(model, last)
    averaging = _averaging(model)
    return lambda last: averaging if last else model


def _sharded(model: nn.Module, last: bool) -> nn.Module:
    model.set_requires_gradient_sync(last)
    return model


def _averaging(model: nn.Module) -> nn.Module:
    """The model whose backward also averages the gradients; all processes begin at the first's weights."""
    with warnings.catch_warnings():  # torch 2.13 has another name for broadcast_buffers, and 2.12 not yet
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
