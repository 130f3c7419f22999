"""One decoder-only transformer for every configuration, working on a flat packed row of tokens.

The model knows nothing of precision: it is handed a factory of linear layers and the dtype of its
activations. A micro-batch is `num_tokens` tokens whatever their sequence length, so norms, linear layers and
the loss see one shape at every stage of a curriculum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yxanul.config import FeedForward, ModelConfig, Norm, Positions
from yxanul.model.attention import Layout
from yxanul.model.embedding import Embedding
from yxanul.model.loss import CrossEntropy, summed_cross_entropy, token_cross_entropy
from yxanul.model.prior import NGramPrior, Prior

LinearFactory = Callable[[int, int], nn.Module]
Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Packed:
    """A row of tokens as the model takes it.

    Attributes:
        tokens: (tokens,) int64.
        positions: (tokens,) int64, each token's position in its sequence.
        layout: which stretches of the row attend to themselves.
    """

    tokens: Tensor
    positions: Tensor
    layout: Layout

    def map(self, function: Callable[[Tensor], Tensor]) -> "Packed":
        """The same with `function`, for example a copy to a device, applied to its tensors."""
        return Packed(function(self.tokens), function(self.positions), self.layout.map(function))


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467) with float32 statistics."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm without bias, with float32 statistics."""

    def __init__(self, size: int, eps: float):
        super().__init__(size, eps=eps, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def build_norm(model: ModelConfig) -> nn.Module:
    kind = RMSNorm if model.norm is Norm.rmsnorm else LayerNorm
    return kind(model.hidden_size, model.norm_eps)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary positions (arXiv 2104.09864), halves convention: x (tokens, heads, head size)."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """The products around grouped-query causal self-attention."""

    def __init__(self, model: ModelConfig, linear: LinearFactory):
        super().__init__()
        self.head_dim = model.hidden_size // model.num_heads
        self.heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads)
        self.qk_norm_eps = model.norm_eps if model.qk_norm else None
        self.qkv = linear(model.hidden_size, sum(self.heads) * self.head_dim)
        self.out = linear(model.hidden_size, model.hidden_size)

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, hidden) -> queries, keys and values, (tokens, heads, head size)."""
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=1)
        if self.qk_norm_eps is not None:
            q, k = (F.rms_norm(part, (self.head_dim,), eps=self.qk_norm_eps) for part in (q, k))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v


class SwiGLU(nn.Module):
    """Gated feed-forward (arXiv 2002.05202): `narrow(widen(x))`."""

    def __init__(self, model: ModelConfig, linear: LinearFactory):
        super().__init__()
        self.gate_up = linear(model.hidden_size, 2 * model.intermediate_size)
        self.down = linear(model.intermediate_size, model.hidden_size)

    def widen(self, x: Tensor) -> Tensor:
        return self.gate_up(x)

    def narrow(self, wide: Tensor) -> Tensor:
        gate, up = wide.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def relu_squared(x: Tensor) -> Tensor:
    """ReLU squared, Primer's activation (arXiv 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS = {FeedForward.gelu: F.gelu, FeedForward.relu2: relu_squared}
"""Of feed-forwards without a gate."""


class Plain(nn.Module):
    """Feed-forward without a gate, as GPT-2's: `narrow(widen(x))`."""

    def __init__(self, model: ModelConfig, linear: LinearFactory):
        super().__init__()
        self.activation = ACTIVATIONS[model.feed_forward]
        self.up = linear(model.hidden_size, model.intermediate_size)
        self.down = linear(model.intermediate_size, model.hidden_size)

    def widen(self, x: Tensor) -> Tensor:
        return self.up(x)

    def narrow(self, wide: Tensor) -> Tensor:
        return self.down(self.activation(wide))


def _again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, of which the backward keeps x alone and computes again what it needs.

    That is all up to the input of its last product; the product itself only where an FP8 layer makes it uncompiled.
    """
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def memory_is_dear(x: Tensor) -> bool:
    """Whether to keep nothing between the feed-forward's products, a third of all activations.

    Computing it again takes a GPU no time to speak of, and a CPU 3% of a step.
    """
    return x.is_cuda


class Block(nn.Module):
    """One layer: what comes before attention, attention itself, what comes after.

    Before and after see flat tokens alone, so each is one graph for the compiler whatever the sequence length;
    attention between them is the layout's own kernel.

    Args:
        recompute: keep nothing of the feed-forward but its input, and compute it again in the backward.
    """

    def __init__(self, model: ModelConfig, linear: LinearFactory, recompute: bool):
        super().__init__()
        self.recompute = recompute
        self.attention_norm = build_norm(model)
        self.attention = Attention(model, linear)
        self.feed_forward_norm = build_norm(model)
        self.feed_forward = (SwiGLU if model.feed_forward is FeedForward.swiglu else Plain)(model, linear)

    def before(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.attention.project(self.attention_norm(x), rotation)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attention.out(attended)
        if torch.is_grad_enabled():
            if self.recompute:
                return x + _again(self._feed_forward, x)
            if memory_is_dear(x):
                return x + _again(self.feed_forward.narrow, self._widen(x))
        return x + self._feed_forward(x)

    def _widen(self, x: Tensor) -> Tensor:
        return self.feed_forward.widen(self.feed_forward_norm(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.feed_forward.narrow(self._widen(x))

    def forward(self, x: Tensor, rotation: Rotation | None, where: Layout) -> Tensor:
        attended = where.attend(*self.before(x, rotation))
        return self.after(x, attended.flatten(1))


def recomputes(share: float, layer: int) -> bool:
    """Whether this layer (0-based) is among the evenly spread `share` of the layers."""
    return math.floor((layer + 1) * share) > math.floor(layer * share)


class Transformer(nn.Module):
    """The model of a run.

    Args:
        vocab_size: the tokenizer's; the table is padded.
        linear: makes the linear layers inside the blocks; their parameter is `weight`, (out, in), float32.
        dtype: of the activations between the layers.
        cross_entropy: head and loss of training.
        recompute: share of the layers, evenly spread, that compute their feed-forward again in the backward.
        ngrams: what counting knows already, added to the logits; None to learn all of it.
    """

    def __init__(
        self,
        model: ModelConfig,
        vocab_size: int,
        linear: LinearFactory,
        dtype: torch.dtype,
        cross_entropy: CrossEntropy = summed_cross_entropy,
        recompute: float = 0.0,
        ngrams: NGramPrior | None = None,
    ):
        super().__init__()
        self.vocab_size = vocab_size
        self.ngrams = ngrams
        self.cross_entropy = cross_entropy
        self.embedding = Embedding(vocab_size, model.hidden_size, model.embedding_rank, model.tied, dtype)
        self.positions = None
        if model.positions is Positions.learned:
            self.positions = nn.Embedding(model.max_seq_len, model.hidden_size)
        else:
            self._register_rotation(model, dtype)
        self.blocks = nn.ModuleList(
            Block(model, linear, recomputes(recompute, index)) for index in range(model.num_layers)
        )
        self.norm = build_norm(model)

    def _register_rotation(self, model: ModelConfig, dtype: torch.dtype) -> None:
        half = model.hidden_size // model.num_heads // 2
        frequencies = model.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(model.max_seq_len, dtype=torch.float64), frequencies).unsqueeze(1)
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)

    @torch.no_grad()
    def initialize(self, init_std: float, generator: torch.Generator) -> None:
        """Normal weights of `init_std`, residual projections scaled by 1/sqrt(2*layers) as in GPT-2; norms are ones.

        A head of its own begins at zero.
        """
        residual_std = init_std / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.named_parameters():
            if parameter is self.embedding.head_table:
                parameter.zero_()
            elif parameter.ndim == 2:
                residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                parameter.normal_(std=residual_std if residual else init_std, generator=generator)

    def hidden(self, packed: Packed) -> Tensor:
        """The hidden states before the head, (tokens, hidden)."""
        x = self.embedding(packed.tokens)
        rotation = None
        if self.positions is not None:
            x = x + self.positions(packed.positions).to(x.dtype)
        else:
            rotation = self.cos[packed.positions], self.sin[packed.positions]
        for block in self.blocks:
            x = block(x, rotation, packed.layout)
        return self.norm(x)

    def forward(self, packed: Packed, targets: Tensor) -> Tensor:
        """The summed negative log-likelihood of `targets` (tokens,) int64, in nats; differentiable."""
        return self.cross_entropy(*self.embedding.head(self.hidden(packed)), targets, self._prior(packed))

    @torch.no_grad()
    def token_losses(self, packed: Packed, targets: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The negative log-likelihood in nats of the targets (rows,) that follow positions `rows` of the packed row."""
        prior = self._prior(packed)
        return token_cross_entropy(*self.embedding.head(self.hidden(packed)[rows]), targets, prior and prior.of(rows))

    @torch.no_grad()
    def next_token_logits(self, packed: Packed, rows: Tensor) -> Tensor:
        """Float32 logits (rows, vocabulary) for the tokens that follow positions `rows` of the packed row."""
        prior = self._prior(packed)
        return self.logits(self.hidden(packed)[rows], prior and prior.of(rows))

    def logits(self, hidden: Tensor, prior: Prior | None) -> Tensor:
        """(rows, hidden) -> float32 (rows, vocabulary)."""
        hidden, weight = self.embedding.head(hidden)
        logits = (hidden @ weight.T).float()
        if prior:
            prior.add_to(logits)
        return logits[:, : self.vocab_size]

    def _prior(self, packed: Packed) -> Prior | None:
        return self.ngrams and self.ngrams(packed.tokens, packed.positions)
