"""A run's model as a class that stock `transformers` has: which one, its configuration and its weights.

Nothing is approximated: a factorized embedding is multiplied out, normalized queries and keys become norms of ones, and
where no class has what the model has, it is refused by the option's name.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from yxanul.config import Config, FeedForward, ModelConfig, Norm, Positions
from yxanul.errors import UserError
from yxanul.model.transformer import Transformer

Described = tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]
"""What config.json says, and the tensors by their stock names, as views of the model's wherever it has them."""

ROTARY = {"norm": Norm.rmsnorm, "feed_forward": FeedForward.swiglu, "positions": Positions.rotary}
PLAIN = {"norm": Norm.layernorm, "feed_forward": FeedForward.gelu, "positions": Positions.learned}
SQUARED = PLAIN | {"feed_forward": FeedForward.relu2}


@dataclass(frozen=True)
class Stock:
    """A model for `transformers`.

    Attributes:
        config: of config.json.
        tensors: of model.safetensors, float32; embedding and head are one where they are tied.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]


@torch.no_grad()
def to_stock(config: Config, model: Transformer, end_of_text: int) -> Stock:
    """The same model as Llama, Qwen3 (where queries and keys are normalized) or GPT-2.

    Raises:
        UserError: no class has an option of the model.
    """
    if config.ngram.order:
        raise UserError(
            f"ngram.order={config.ngram.order}: no class of transformers adds counted n-grams to its logits"
        )
    shape = config.model
    vocab_size = config.tokenizer.vocab_size
    common = {
        "vocab_size": vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tie_word_embeddings": shape.tied,
        "dtype": "float32",
        "initializer_range": shape.init_std,
    }
    table = model.embedding.table[:vocab_size]
    if model.embedding.projection is not None:
        table = table @ model.embedding.projection
    described, tensors = _described(config, model, table)
    return Stock(common | described, {name: _copy(tensor) for name, tensor in tensors})


@torch.no_grad()
def from_stock(config: Config, model: Transformer, folder: Path) -> None:
    """Fill a model with the weights of a Hugging Face folder that it can be exactly.

    Raises:
        UserError: the folder is unreadable, or holds a model of another architecture or shape, or with weights that
            this one has no place for (biases, a head of its own where this one is tied).
    """
    shape = config.model
    if shape.embedding_rank is not None:
        raise UserError(f"model.embedding_rank={shape.embedding_rank}: init_from={folder} needs null, a full table")
    described, pairs = _described(config, model, model.embedding.table[: config.tokenizer.vocab_size])
    _refuse_another_shape(folder, described)
    theirs = _read_tensors(folder, described["model_type"])
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for name, mine in pairs:
        found = theirs.pop(name, None)
        if mine.untyped_storage().data_ptr() in own:
            if found is None or found.shape != mine.shape:
                there = "missing" if found is None else f"{tuple(found.shape)}"
                raise UserError(f"init_from={folder}: {name} is {there} there and {tuple(mine.shape)} here")
            mine.copy_(found)  # a view of the model's own weight
        elif found is not None and not torch.equal(found.float(), mine):
            raise UserError(f"init_from={folder}: {name} holds weights that this model has no place for")
    head = theirs.pop("lm_head.weight", None)
    table = model.embedding.table[: config.tokenizer.vocab_size]
    if head is not None and not torch.equal(head.float(), table):
        raise UserError(
            f"init_from={folder}: its head is not its embedding, and here they are one; compose model.tied=false"
        )
    if theirs:
        raise UserError(f"init_from={folder}: {next(iter(theirs))} holds weights that this model has no place for")


def _refuse_another_shape(folder: Path, described: dict[str, Any]) -> None:
    path = folder / "config.json"
    try:
        there = json.loads(path.read_text())
        there |= there.get("rope_parameters") or {}
    except (OSError, ValueError) as error:
        raise UserError(f"init_from={folder}: is no run and no Hugging Face folder ({error})") from error
    if there.get("model_type") != described["model_type"]:
        raise UserError(
            f"init_from={folder}: is a {there.get('model_type')}, and this model a {described['model_type']}"
        )
    for name, value in described.items():
        if name != "architectures" and there.get(name, value) not in (value, None):
            raise UserError(
                f"init_from={folder}: {name} is {there[name]} there and {value} here; compose the same model"
            )


def _read_tensors(folder: Path, model_type: str) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"init_from={folder}: holds no *.safetensors")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from error
    if model_type == "gpt2":  # whose first folders name nothing but the layers, and keep masks
        own = ("transformer.", "lm_head.")
        tensors = {name if name.startswith(own) else f"transformer.{name}": x for name, x in tensors.items()}
        masks = (".attn.bias", ".attn.masked_bias")
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(masks)}
    return tensors


def _copy(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)


def _described(config: Config, model: Transformer, table: Tensor) -> Described:
    """The model as its class has it; `table` is the whole embedding, (vocabulary, hidden)."""
    make = _gpt2 if _plain(config.model) else _llama
    described, tensors = make(config.model, model, table)
    head = model.embedding.head_table
    own = [] if head is None else [("lm_head.weight", head[: config.tokenizer.vocab_size])]
    return described, chain(tensors, own)


def _plain(shape: ModelConfig) -> bool:
    """Whether the model is GPT-2's; else it is Llama's or Qwen3's.

    Raises:
        UserError: it is a mixture of both.
    """
    kinds = [ROTARY, PLAIN, SQUARED]
    fitting = [sum(getattr(shape, name) is value for name, value in kind.items()) for kind in kinds]
    nearest = kinds[fitting.index(max(fitting))]
    for name, value in nearest.items():
        if getattr(shape, name) is not value:
            others = ", ".join(f"{key}={kind.value}" for key, kind in nearest.items() if key != name)
            raise UserError(f"model.{name}={getattr(shape, name).value}: no class of transformers has it with {others}")
    if nearest is not ROTARY and shape.qk_norm:
        raise UserError("model.qk_norm=true: no class of transformers has it with model.positions=learned")
    if nearest is not ROTARY and shape.num_kv_heads != shape.num_heads:
        raise UserError(
            f"model.num_kv_heads={shape.num_kv_heads}: no class of transformers has fewer than heads "
            "with model.positions=learned"
        )
    return nearest is not ROTARY


def _llama(shape: ModelConfig, model: Transformer, table: Tensor) -> Described:
    head_dim = shape.hidden_size // shape.num_heads
    described = {
        "architectures": ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if shape.qk_norm else "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_seq_len,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    }

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "model.embed_tokens.weight", table
        yield "model.norm.weight", model.norm.weight
        for index, block in enumerate(model.blocks):
            at = f"model.layers.{index}"
            sizes = [heads * head_dim for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)]
            for name, part in zip("qkv", block.attention.qkv.weight.split(sizes), strict=True):
                yield f"{at}.self_attn.{name}_proj.weight", part
            yield f"{at}.self_attn.o_proj.weight", block.attention.out.weight
            for name, part in zip(("gate", "up"), block.feed_forward.gate_up.weight.chunk(2), strict=True):
                yield f"{at}.mlp.{name}_proj.weight", part
            yield f"{at}.mlp.down_proj.weight", block.feed_forward.down.weight
            yield f"{at}.input_layernorm.weight", block.attention_norm.weight
            yield f"{at}.post_attention_layernorm.weight", block.feed_forward_norm.weight
            for name in ("q_norm", "k_norm") if shape.qk_norm else ():
                yield f"{at}.self_attn.{name}.weight", torch.ones(head_dim)

    return described, tensors()


def _gpt2(shape: ModelConfig, model: Transformer, table: Tensor) -> Described:
    described = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": shape.hidden_size,
        "n_inner": shape.intermediate_size,
        "n_layer": shape.num_layers,
        "n_head": shape.num_heads,
        "n_positions": shape.max_seq_len,
        "activation_function": shape.feed_forward.value,
        "layer_norm_epsilon": shape.norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "transformer.wte.weight", table
        yield "transformer.wpe.weight", model.positions.weight
        yield from _with_bias("transformer.ln_f", model.norm.weight)
        for index, block in enumerate(model.blocks):
            at = f"transformer.h.{index}"
            yield from _with_bias(f"{at}.ln_1", block.attention_norm.weight)
            yield from _with_bias(f"{at}.attn.c_attn", block.attention.qkv.weight.T)
            yield from _with_bias(f"{at}.attn.c_proj", block.attention.out.weight.T)
            yield from _with_bias(f"{at}.ln_2", block.feed_forward_norm.weight)
            yield from _with_bias(f"{at}.mlp.c_fc", block.feed_forward.up.weight.T)
            yield from _with_bias(f"{at}.mlp.c_proj", block.feed_forward.down.weight.T)

    return described, tensors()


def _with_bias(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """GPT-2 has biases everywhere, and this model none; its matrices are (in, out)."""
    yield f"{name}.weight", weight
    yield f"{name}.bias", torch.zeros(weight.size(-1))
