"""A run's model as its plan wants it: initialized, on its device, with the chosen kernels."""

import torch

from yxanul.config import Config
from yxanul.data.ngrams import NGrams
from yxanul.kernels import cross_entropy_of
from yxanul.model.prior import NGramPrior
from yxanul.model.transformer import Transformer
from yxanul.planning import RunPlan
from yxanul.precision.linear import Precision
from yxanul.precision.plan import assign
from yxanul.training.compilation import compile_layers


def build_model(
    config: Config, plan: RunPlan, precision: Precision, device: torch.device, ngrams: NGrams | None = None
) -> Transformer:
    """The model at its beginning; its weights depend on the seed alone, not on the device."""
    model = Transformer(
        config.model,
        config.tokenizer.vocab_size,
        precision.linear,
        precision.dtype,
        cross_entropy_of(plan.kernels, device),
        config.hardware.recompute,
        ngrams and NGramPrior(ngrams),
    )
    model.initialize(config.model.init_std, torch.Generator().manual_seed(config.seed))
    assign(model, plan.products)
    model.to(device)
    if precision.around is not None:
        from yxanul.precision.transformer_engine import within  # the package is optional

        within(model, precision.around)
    if plan.kernels.compiled:
        compile_layers(model)
    return model
