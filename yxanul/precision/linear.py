"""Which matrix product runs in what: the linear layers that the model is built from.

Weights are float32 (the optimizer's master copy); a bf16 layer casts them for its product and gives back
float32 gradients, so accumulation over micro-batches stays in float32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yxanul.config import Dtype, PrecisionConfig
from yxanul.model.transformer import LinearFactory


class BF16Linear(nn.Linear):
    """A linear layer without bias whose product is made in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(torch.bfloat16), self.weight.to(torch.bfloat16))


@dataclass(frozen=True)
class Precision:
    """What a run computes in.

    Attributes:
        linear: factory of the blocks' linear layers, (in features, out features) -> module.
        dtype: of activations, embedding and head.
        computes: what really runs, in words, for the plan and the record.
    """

    linear: LinearFactory
    dtype: torch.dtype
    computes: str


def build_precision(config: PrecisionConfig, device: torch.device) -> Precision:
    """The precision of a run on this device; bf16 on a CPU without bf16 units computes in float32, and says so."""
    if config.compute_dtype is Dtype.fp32:
        return Precision(_float32, torch.float32, "fp32")
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("avx512_bf16"):
        return Precision(_float32, torch.float32, "fp32 (this CPU has no bf16 units)")
    return Precision(_bf16, torch.bfloat16, "bf16")


def _float32(in_features: int, out_features: int) -> nn.Module:
    return nn.Linear(in_features, out_features, bias=False)


def _bf16(in_features: int, out_features: int) -> nn.Module:
    return BF16Linear(in_features, out_features, bias=False)
