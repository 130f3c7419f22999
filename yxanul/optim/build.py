"""The optimizers of a run: Muon for the matrices inside the layers where it is chosen, AdamW for everything else."""

import torch
from torch import nn

from yxanul.config import OptimizerConfig
from yxanul.optim.muon import Muon


def build_optimizers(
    model: nn.Module, config: OptimizerConfig, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """AdamW (arXiv 1711.05101, fused), with Muon before it if configured; weight decay on matrices only.

    Every parameter group has `lr_scale`: what the planned learning rate (of AdamW) is multiplied by for it.

    Args:
        dtype: of the activations, in which Muon makes its matrices orthogonal; weights and moments are float32.
    """
    inside = (
        {id(p) for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
        if config.muon
        else set()
    )
    muon = [parameter for parameter in model.parameters() if id(parameter) in inside]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2 and id(parameter) not in inside]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=tuple(config.betas), eps=config.eps, fused=True)
    if config.muon is None:
        return [adamw]
    group = {"params": muon, "lr_scale": config.muon.lr / config.lr}
    return [
        Muon(
            [group],
            config.muon.lr,
            config.muon.momentum,
            config.muon.weight_decay,
            config.muon.iterations,
            dtype,
        ),
        adamw,
    ]
