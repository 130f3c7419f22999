"""FP8 by Transformer Engine, on a GPU: its linear layer inside one of ours, its recipes and its context.

Written for version 2.20 and held against its source by tests, since nothing of it runs without a GPU.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
import transformer_engine.pytorch as te
from torch import Tensor, nn
from transformer_engine.common import recipe as te_recipes
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from yxanul.config import Recipe
from yxanul.model.transformer import Packed, Transformer
from yxanul.precision.products import Fp8Layer
from yxanul.precision.recipes import Role

ROWS = 32
"""What MXFP8 needs the number of tokens to be a multiple of; the other recipes do with 16."""

Context = Callable[[], AbstractContextManager]


class TransformerEngineLinear(Fp8Layer):
    """A linear layer without bias, its three products by Transformer Engine if it has any in FP8.

    Attributes:
        context: makes the context of FP8; see `within`.
        first_micro_batch: False: the weight is as it was at the last forward, and need not be quantized again; True:
            it is not, and is worth keeping; None: it is not kept. The optimizer's step cannot be seen from here (fused
            AdamW leaves the weight's version as it was), so a trainer says it.
    """

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype):
        super().__init__()
        self.use(frozenset(Role))
        self.dtype = dtype
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.context: Context | None = None
        # In a tuple, where nn.Module does not look: registered, it would add a pickled state to every checkpoint.
        # On "meta", since the weight is ours; without a device it would allocate and initialize another on the GPU.
        self._inner = (te.Linear(in_features, out_features, bias=False, params_dtype=torch.float32, device="meta"),)
        self._inner[0].weight = self.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if not (self.active and self.roles):
            return F.linear(x, self.weight.to(self.dtype))
        (linear,) = self._inner
        if linear.weight is not self.weight:  # whoever replaced ours does not know of this one
            linear.weight = self.weight
        missing = -x.size(0) % ROWS
        # It refuses a weight of another dtype than the input's unless torch.autocast says what to compute in.
        with self._fp8(), torch.autocast("cuda", self.dtype, enabled=self.dtype is not self.weight.dtype):
            out = linear(F.pad(x, (0, 0, 0, missing)) if missing else x, is_first_microbatch=self._keeps())
        return out[: x.size(0)] if missing else out

    def _fp8(self) -> AbstractContextManager:
        """Of the model's forward if that is running; a layer computed again in the backward is outside of it, and
        without FP8 would keep other tensors than its forward did."""
        if FP8GlobalStateManager.is_fp8_enabled():
            return nullcontext()
        if self.context is None:
            raise RuntimeError("a layer of Transformer Engine runs in FP8 only after within(model, context)")
        return self.context()

    def _keeps(self) -> bool | None:
        """`first_micro_batch` where a kept weight can be used: in training, and not in a compiled graph."""
        return self.first_micro_batch if torch.is_grad_enabled() and not torch.compiler.is_compiling() else None


def te_linear(in_features: int, out_features: int, *, dtype: torch.dtype) -> Fp8Layer:
    """A layer for activations of `dtype`; made only where there is a GPU.

    Its sizes must be multiples of 16, for MXFP8 of 32: tokens are padded, weights cannot be.
    """
    return TransformerEngineLinear(in_features, out_features, dtype)


@cache  # Transformer Engine recognizes a recipe that it has seen, and the compiler cannot trace how one is made
def te_recipe(recipe: Recipe, power_of_two: bool = False) -> te_recipes.Recipe:
    """The recipe in Transformer Engine's terms, whatever its environment variables say of scales."""
    if recipe is Recipe.delayed:
        return te_recipes.DelayedScaling()
    if recipe is Recipe.mxfp8:
        return te_recipes.MXFP8BlockScaling()
    if recipe not in (Recipe.tensorwise, Recipe.blockwise):
        raise ValueError(f"Transformer Engine has no {recipe.value} recipe")
    found = te_recipes.Float8CurrentScaling() if recipe is Recipe.tensorwise else te_recipes.Float8BlockScaling()
    scales = te_recipes.QParams(power_2_scale=power_of_two)  # class attributes there, so no arguments
    found.fp8_quant_fwd_inp = found.fp8_quant_fwd_weight = found.fp8_quant_bwd_grad = scales
    return found


def te_context(recipe: Recipe, enabled: bool, power_of_two: bool = False) -> AbstractContextManager:
    """The context of a forward, with FP8 or without. Delayed scaling moves its history at the exit."""
    return te.autocast(enabled=enabled, recipe=te_recipe(recipe, power_of_two))


def within(model: Transformer, context: Context) -> None:
    """Let every forward of the model, in training and evaluation, run inside `context()`.

    The layers get it too, for their recomputation in the backward. Delayed scaling counts that as a further step of
    its history (1024 of them); the other recipes have none.
    """
    hidden = model.hidden

    def inside(packed: Packed) -> Tensor:
        with context():
            return hidden(packed)

    model.hidden = inside
    for layer in model.modules():
        if isinstance(layer, TransformerEngineLinear):
            layer.context = context
