"""A Hugging Face folder, ours or another's, as something that can be judged like a run.

Stock `transformers` reads it, without code from the folder and without pickles.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yxanul.config import TokenizerConfig, TokenizerKind
from yxanul.errors import UserError
from yxanul.model.transformer import Packed
from yxanul.tokenizer.load import Tokenizer, open_tokenizer

CONTEXTS = ("max_position_embeddings", "n_positions")
"""What config.json calls the length of the context."""


@dataclass(frozen=True)
class StockModel:
    """A causal language model of `transformers` that predicts a packed row window by window."""

    model: nn.Module

    def token_losses(self, packed: Packed, targets: Tensor, rows: Tensor) -> Tensor:
        """The negative log-likelihood in nats of the targets (rows,) that follow positions `rows` of the packed row."""
        return F.cross_entropy(self.next_token_logits(packed, rows), targets, reduction="none")

    @torch.no_grad()
    def next_token_logits(self, packed: Packed, rows: Tensor) -> Tensor:
        """Float32 logits (rows, vocabulary) for the tokens that follow positions `rows` of the packed row."""
        starts = (packed.positions == 0).nonzero().flatten()
        sizes = torch.diff(starts, append=starts.new_tensor([len(packed.tokens)])).tolist()
        windows = packed.tokens.split(sizes)
        logits = torch.cat([self.model(input_ids=tokens[None]).logits[0] for tokens in windows])
        return logits[rows].float()


@dataclass(frozen=True)
class OpenFolder:
    """What a Hugging Face folder holds.

    Attributes:
        context: tokens.
    """

    folder: Path
    model: StockModel
    tokenizer: Tokenizer
    context: int
    parameters: int


def is_stock(folder: Path) -> bool:
    """Whether a folder is Hugging Face's."""
    return (folder / "config.json").is_file()


def open_stock(folder: Path, device: torch.device) -> OpenFolder:
    """Open a folder that `transformers` can read, in float32.

    Raises:
        UserError: `transformers` is not installed, its weights are no safetensors, its architecture is not known, or
            its tokenizer is no byte-level BPE that fits the model.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise UserError(f"{folder}: to read it takes transformers; pip install 'yxanul[export]'") from error
    described = _described(folder)
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: holds no *.safetensors; pickled weights (*.bin, *.pt) can run code and are not read"
        )
    context = next((described[name] for name in CONTEXTS if name in described), None)
    if context is None:
        raise UserError(f"{folder}/config.json: says no length of the context ({' or '.join(CONTEXTS)})")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # the library raises what it likes
        raise UserError(f"{folder}: transformers cannot read it ({str(error).strip().splitlines()[0]})") from error
    tokenizer = _tokenizer(folder, described)
    rows = model.get_input_embeddings().weight.size(0)
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size:,} entries and its model {rows:,}; they do not belong "
            "together"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return OpenFolder(folder, StockModel(model.to(device).eval()), tokenizer, context, parameters)


def _described(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _tokenizer(folder: Path, described: dict[str, Any]) -> Tokenizer:
    """Its tokenizer; what begins a text is the model's beginning-of-text token, or else its end-of-text token."""
    path = folder / "tokenizer.json"
    first = next(
        (described[name] for name in ("bos_token_id", "eos_token_id") if described.get(name) is not None), None
    )
    first = first[0] if isinstance(first, list) else first
    if first is None:
        raise UserError(f"{folder}/config.json: names no token that begins a text (bos_token_id or eos_token_id)")
    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: is no tokenizer.json that the tokenizers library reads") from error
    size = 1 + max(library.get_vocab(with_added_tokens=True).values())
    asked = TokenizerConfig(
        kind=TokenizerKind.hub,
        path=str(path),
        repo=None,
        revision=None,
        vocab_size=size,
        transition=None,
        train_bytes=None,
        end_of_text=library.id_to_token(first),
        bytes_per_token=1.0,
    )
    return open_tokenizer(path, asked)
