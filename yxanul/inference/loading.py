"""A run opened to be used: its configuration, its tokenizer and the weights of a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from yxanul.composition import recorded
from yxanul.config import Config, Dtype
from yxanul.data.ngrams import read_ngrams
from yxanul.errors import UserError
from yxanul.model.prior import NGramPrior
from yxanul.model.transformer import Transformer
from yxanul.precision.linear import build_precision
from yxanul.tokenizer.load import Tokenizer, open_tokenizer
from yxanul.training import checkpoint
from yxanul.training.checkpoint import TrainState
from yxanul.training.text import NGRAMS, TOKENIZER
from yxanul.validation import validate

CONFIG = "config.yaml"


@dataclass(frozen=True)
class OpenRun:
    """A run's model, ready to be used.

    Attributes:
        checkpoint: whose weights it has.
    """

    folder: Path
    config: Config
    tokenizer: Tokenizer
    model: Transformer
    state: TrainState
    checkpoint: Path


def open_run(folder: Path, device: torch.device, dtype: Dtype | None = None) -> OpenRun:
    """Open the newest checkpoint of a run.

    FP8 and layers of the user's own are for training: products are made in the activations' dtype here.

    Args:
        dtype: what to compute in; None for what the run did.

    Raises:
        UserError: `folder` is no run, or has no checkpoint, or something in it is damaged or does not fit.
    """
    config = run_config(folder)
    path = newest_checkpoint(folder)
    tokenizer = run_tokenizer(folder, config)
    dtype = dtype or config.precision.compute_dtype
    precision = replace(config.precision, fp8=False, layers=None, compute_dtype=dtype)
    built = build_precision(precision, device)
    ngrams = read_ngrams(folder / NGRAMS, tokenizer.end_of_text) if config.ngram.order else None
    model = Transformer(
        config.model,
        config.tokenizer.vocab_size,
        built.linear,
        built.dtype,
        ngrams=ngrams and NGramPrior(ngrams),
    )
    state = checkpoint.load_weights(path, model)
    if state.tokenizer != tokenizer.fingerprint:
        raise UserError(f"{folder / TOKENIZER}: is another tokenizer than the run was trained with; put that one back")
    return OpenRun(folder, config, tokenizer, model.to(device), state, path)


def run_config(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
        UserError: the folder is no run, or one of another version.
    """
    path = folder / CONFIG
    try:
        config = recorded(yaml.safe_load(path.read_text(encoding="utf-8")))
        validate(config)
        return config
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: is no run (it has no {CONFIG}); name a folder below outputs/") from None
    except (yaml.YAMLError, ValueError, UserError) as error:
        raise UserError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); was it written by this version?"
        ) from None


def newest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run; raises UserError if there is none."""
    found = checkpoint.checkpoints(folder / "checkpoints")
    if not found:
        raise UserError(f"{folder}: has no checkpoint yet; let it train up to one (checkpoint.every)")
    return found[-1]


def run_tokenizer(folder: Path, config: Config) -> Tokenizer:
    """The tokenizer that a run keeps; raises UserError if it is not there."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise UserError(f"{path}: is missing; start the run's command again, which puts it there")
    return open_tokenizer(path, config.tokenizer)
