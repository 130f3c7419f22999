"""Muon: momentum made orthogonal, for the matrices inside the layers (https://kellerjordan.github.io/posts/muon).

torch.optim.Muon iterates one matrix at a time in bf16, which takes seconds a step on most CPUs. Here matrices
of one shape are stacked and iterated together, in the dtype that the run's activations have.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, which takes singular values to about 1 (0.7 to 1.2) and no further."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized, with decoupled weight decay.

    Args:
        params: matrices (out features, in features).
        lr: of an orthogonal update whose entries are scaled by sqrt(max(1, out/in)).
        iterations: of Newton-Schulz.
        dtype: that it is made in.

    Attributes:
        found_inf: 0-dim float tensor, not 0 where the gradients are not finite: the step then changes nothing,
            and nobody waits for the device to know it. As for torch's own fused optimizers.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float,
        weight_decay: float,
        iterations: int,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "iterations": iterations,
            },
        )
        self.dtype = dtype
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict) -> None:
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [_here(self.state[parameter]["momentum"]) for parameter in parameters]
        gradients = torch.stack([_here(parameter.grad) for parameter in parameters])
        taken = torch.ones((), device=gradients.device)
        if self.found_inf is not None:
            taken -= self.found_inf.clamp(max=1)
            gradients.masked_fill_(taken == 0, 0)
        momentum = torch.stack(buffers).lerp_(gradients, taken * (1 - group["momentum"]))
        torch._foreach_copy_(buffers, list(momentum.unbind()))
        nesterov = gradients.lerp_(momentum, group["momentum"])
        updates = _orthogonalize_shards(nesterov, parameters[0], group["iterations"], self.dtype)
        rows, columns = parameters[0].shape
        weights = [_here(parameter) for parameter in parameters]
        torch._foreach_mul_(weights, 1 - taken * group["lr"] * group["weight_decay"])
        rates = taken * -group["lr"] * max(1, rows / columns) ** 0.5
        torch._foreach_add_(weights, list((updates.to(weights[0].dtype) * rates).unbind()))


def _here(tensor: Tensor) -> Tensor:
    """What of a tensor is on this process: its share where FSDP has sharded it, else all."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _orthogonalize_shards(shards: Tensor, parameter: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """The same rows (n, rows here, columns) of the orthogonalized matrices, all of the shape of `parameter`.

    Of sharded matrices every process makes an equal number whole and iterates those alone.
    """
    if not hasattr(parameter, "to_local"):
        return orthogonalize(shards, iterations, dtype)
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((len(shards), *parameter.shape))
    layout = {"shape": shape, "stride": (shape[1] * shape[2], shape[2], 1), "run_check": False}
    whole = DTensor.from_local(shards, parameter.device_mesh, [Shard(1)], **layout).redistribute(placements=[Shard(0)])
    updates = orthogonalize(whole.to_local(), iterations, dtype)
    by_matrix = DTensor.from_local(updates.contiguous(), parameter.device_mesh, [Shard(0)], **layout)
    return by_matrix.redistribute(placements=[Shard(1)]).to_local()


def orthogonalize(matrices: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """Bring the singular values of a stack (n, rows, columns) near 1 by the quintic Newton-Schulz iteration.

    It is made in `dtype`, which the result has.
    """
    a, b, c = COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
