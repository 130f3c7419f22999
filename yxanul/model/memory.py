"""The peak memory of a training step, counted from its configuration alone, so that a plan needs no model.

Every term is what some operator keeps or makes; tests hold the sum against real steps that are watched.
"""

from collections import Counter
from dataclasses import dataclass

from yxanul.config import Config, CrossEntropyKernel, Dtype, FeedForward, ModelConfig, NGramConfig, Norm, Positions
from yxanul.model.attention import TILE, keys_held
from yxanul.model.count import (
    embedding_parameters,
    head_parameters,
    layer_matrices,
    layer_matrix_parameters,
    parameters,
)
from yxanul.model.embedding import padded_vocab
from yxanul.model.loss import chunk_tokens, slice_rows
from yxanul.model.transformer import recomputes

FLOAT = 4
"""Bytes of a float32."""


def state_bytes(config: Config) -> int:
    """Weights, gradients and moments, float32."""
    return checkpoint_bytes(config) + FLOAT * parameters(config.model, config.tokenizer.vocab_size)


def checkpoint_bytes(config: Config) -> int:
    """Weights and moments, float32: AdamW keeps two moments of a weight, Muon one of a layer's matrix."""
    model = config.model
    with_muon = model.num_layers * layer_matrix_parameters(model) if config.optimizer.muon else 0
    return FLOAT * (3 * parameters(model, config.tokenizer.vocab_size) - with_muon)


def ngram_bytes(config: NGramConfig) -> int:
    """Of the tables of counted n-grams, at most: a context and an entry for each token and order above the first."""
    context, entry = 8 + 8, 4 + FLOAT
    return max(0, config.order - 1) * config.tokens * (context + entry)


def gathered_bytes(config: Config, processes: int) -> int:
    """What FSDP holds over a process's share of the state.

    While micro-batches accumulate that is the whole gradient, float32; and when the largest block, embedding and head,
    is gathered, what the others have of it. Layers are small beside it and come and go.
    """
    vocab = config.tokenizer.vocab_size
    block = embedding_parameters(config.model, vocab) + head_parameters(config.model, vocab)
    elsewhere = block * (processes - 1) // processes
    return FLOAT * (parameters(config.model, vocab) + elsewhere)


def training_bytes(
    config: Config,
    dtype: Dtype,
    device: str,
    compiled: bool,
    micro_batch_tokens: int,
    tile: int = 0,
    shards: int = 1,
) -> int:
    """Predicted peak of all tensors over an optimizer step of several micro-batches.

    Gradients are there from the first micro-batch on, so the peak is over the state and is reached in one of
    three phases: head and loss, which end the forward; the backward; the optimizers' update.

    Args:
        dtype: of the activations.
        device: its type, "cpu" or "cuda".
        compiled: whether torch.compile makes the graphs of the layers.
        tile: tokens of a tile where attention is batched products, which keep its scores; otherwise 0.
        shards: into how many shares FSDP has divided weights, gradients and moments.
    """
    step = _MicroBatch(config, dtype, device, compiled, micro_batch_tokens, tile)
    phases = step.loss_bytes(), step.backward_bytes(), update_bytes(config, dtype) // shards
    gathered = gathered_bytes(config, shards) if shards > 1 else 0
    return state_bytes(config) // shards + ngram_bytes(config.ngram) + gathered + max(phases)


def update_bytes(config: Config, dtype: Dtype) -> int:
    """What the optimizers take over their state: Muon works on all matrices of a shape at once, AdamW in place.

    Beside the stacks of gradients and momentum, float32: an iteration in float32 holds the matrices before and after
    and two squares of their smaller side; where it is in bf16 the end takes more, the update in bf16, in float32, and
    scaled.
    """
    if config.optimizer.muon is None:
        return 0
    stacks = Counter(layer_matrices(config.model).values())

    def needed(rows: int, columns: int) -> int:
        if dtype is Dtype.bf16:
            return (4 * FLOAT + 2) * rows * columns
        return FLOAT * (4 * rows * columns + 2 * min(rows, columns) ** 2)

    return config.model.num_layers * max(number * needed(*shape) for shape, number in stacks.items())


@dataclass(frozen=True)
class _MicroBatch:
    """The memory of one micro-batch over the state, term by term; all in bytes, and `*_kept` a token.

    Kept is what autograd saves between forward and backward. Eagerly that is what each operator asks for.
    Compiled, a layer's graphs save the inputs of matrix products and what cannot be had from them, all in the
    activations' dtype, and make the rest again; attention, embedding, the last norm and the head are never compiled.
    """

    config: Config
    dtype: Dtype
    device: str
    compiled: bool
    tokens: int
    tile: int

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def width(self) -> int:
        """Of one activation."""
        return 2 if self.dtype is Dtype.bf16 else FLOAT

    @property
    def keys(self) -> int:
        """Components of a token's keys, and as many of its values."""
        return self.model.num_kv_heads * (self.model.hidden_size // self.model.num_heads)

    @property
    def hidden_bytes(self) -> int:
        return self.width * self.model.hidden_size

    @property
    def wide_bytes(self) -> int:
        return self.width * self.model.intermediate_size

    @property
    def qkv_bytes(self) -> int:
        return self.hidden_bytes + 2 * self.width * self.keys

    @property
    def rank(self) -> int:
        return self.model.embedding_rank or self.model.hidden_size

    @property
    def table(self) -> int:
        """Elements of the embedding's table."""
        return padded_vocab(self.config.tokenizer.vocab_size) * self.rank

    def norm_kept(self, compiled: bool) -> int:
        """A norm's input, statistics and output, which is the input of a product.

        The input is kept in float32: the residual stream itself, or in bf16 a copy of it. On a CPU the RMS norm
        is no fused kernel and also keeps the normalized input before its weight, float32.
        """
        statistics = FLOAT if self.model.norm is Norm.rmsnorm else 2 * FLOAT
        if compiled:
            return 2 * self.hidden_bytes + statistics
        composed = self.model.norm is Norm.rmsnorm and self.device == "cpu"
        return (2 if composed else 1) * FLOAT * self.model.hidden_size + statistics + self.hidden_bytes

    def queries_keys_kept(self) -> int:
        """What is kept of queries, keys and values before attention.

        The norm of queries and keys keeps its input, of which they are a part, or on a CPU in bf16 a float32 copy
        of them. On a GPU attention reads the values where the product put them, which keeps all of it.
        """
        if self.model.qk_norm and self.device == "cpu" and self.dtype is Dtype.bf16 and not self.compiled:
            kept = FLOAT * (self.model.hidden_size + self.keys)
        else:
            kept = self.qkv_bytes if self.model.qk_norm or self.device == "cuda" else 0
        return kept + (FLOAT * (self.model.num_heads + self.model.num_kv_heads) if self.model.qk_norm else 0)

    def attention_kept(self) -> int:
        """Queries, keys and values, the output, and a logarithm for every head.

        On a CPU they are copies; long segments are put together again into the row, and short ones have a mask,
        made numbers of the queries' dtype, of TILE places a token. One formula serves all lengths: the larger.
        Batched products keep their tiles' softmax for every head, and a mask; blocks are put together again.
        """
        output = self.hidden_bytes + FLOAT * self.model.num_heads
        if self.tile:
            shares = self.width * self.model.num_heads * keys_held(self.tile)
            return self.qkv_bytes + self.hidden_bytes + shares + self.tile
        if self.device == "cpu":
            return self.qkv_bytes + output + max(self.hidden_bytes, self.width * TILE)
        turned = self.model.qk_norm or self.model.positions is Positions.rotary
        return output + (self.hidden_bytes + self.width * self.keys if turned else 0)

    def feed_forward_kept(self) -> int:
        """A gated one keeps gate and up, their product and, not compiled, silu; a plain one its activation's two sides.

        A GPU keeps what the first product gave and computes the rest again.
        """
        gated = self.model.feed_forward is FeedForward.swiglu
        if self.device == "cuda":
            return (2 if gated else 1) * self.wide_bytes
        return ((3 if self.compiled else 4) if gated else 2) * self.wide_bytes

    def feed_forward_part_kept(self) -> int:
        """The second half of a layer, with its norm."""
        return self.norm_kept(self.compiled) + self.feed_forward_kept()

    def layer_bytes(self, recomputed: bool) -> int:
        """All that one layer keeps, and in bf16 its matrices in bf16."""
        kept = self.norm_kept(self.compiled) + self.queries_keys_kept() + self.attention_kept()
        kept += self.hidden_bytes if recomputed else self.feed_forward_part_kept()
        *attention, widened, narrowed = (rows * columns for rows, columns in layer_matrices(self.model).values())
        matrices = sum(attention) if recomputed else sum(attention) + widened + narrowed
        return self.tokens * kept + (2 * matrices if self.dtype is Dtype.bf16 else 0)

    def ends_bytes(self) -> int:
        """What embedding, rotation, last norm and head keep; the output of the last norm counts as kept."""
        rotation = self.hidden_bytes // self.model.num_heads if self.model.positions is Positions.rotary else 0
        inner = self.width * self.rank if self.model.embedding_rank else 0  # the looked-up rows
        return self.tokens * (rotation + inner + self.norm_kept(compiled=False))

    def kept_bytes(self) -> int:
        """All that is kept when the forward is at its end."""
        share, layers = self.config.hardware.recompute, range(self.model.num_layers)
        return self.ends_bytes() + sum(self.layer_bytes(recomputes(share, layer)) for layer in layers)

    def loss_bytes(self) -> int:
        """At the end of the forward: all that is kept, and head and loss at work.

        They hold the gradient of the table, float32, in bf16 the table in bf16, their input's gradient and, where
        the embedding is factorized, that input. Over these come logits.
        """
        bf16 = self.dtype is Dtype.bf16
        inputs = (2 if self.model.embedding_rank else 1) * self.width * self.rank
        tables = (FLOAT + (2 if bf16 else 0)) * self.table
        return self.kept_bytes() + self.tokens * inputs + tables + self.logits_bytes()

    def logits_bytes(self) -> int:
        """The buffers of one chunk of logits, or of all of them where the loss is plain.

        Plain, in the backward: their log-softmax, its gradient, and theirs. In chunks: on a GPU the logits and their
        softmax; on a CPU the logits alone, overwritten, in bf16 also the product before them, and a slice of the
        product that is added to the table's float32 gradient by way of a float32 copy.
        """
        vocab = padded_vocab(self.config.tokenizer.vocab_size)
        if self.config.cross_entropy is CrossEntropyKernel.plain:
            return 3 * FLOAT * vocab * self.tokens
        logits = FLOAT * vocab * min(self.tokens, chunk_tokens(self.device, vocab))
        if self.device == "cuda":
            return 2 * logits
        if self.dtype is Dtype.fp32:
            return logits
        added = min(self.table, slice_rows(self.rank) * self.rank)
        return logits + logits // 2 + (2 + FLOAT) * added

    def backward_bytes(self) -> int:
        """In the backward: at its start and in the last layer all is still kept; at its end nothing.

        The table's gradient is scaled first, into a copy or in bf16 into a bf16 one that becomes float32; it then
        waits in float32 for that of the lookup, which comes last; that of a head of its own waits for nothing.
        """
        scaling = (2 * FLOAT if self.dtype is Dtype.fp32 else 2 + FLOAT) * self.table
        last = self.tokens * max(self.norm_transients(), self.feed_forward_transients())
        lookup = FLOAT * self.table
        waiting = lookup if self.model.tied else 0
        start = max(self.tokens * self.width * self.rank + scaling, last + waiting)
        return max(self.kept_bytes() - self.tokens * self.hidden_bytes + start, waiting + lookup)

    def norm_transients(self) -> int:
        """A token's float32 gradients inside the last norm: on both sides, and two more where it is not fused."""
        fused = self.model.norm is Norm.layernorm or self.device == "cuda"
        return (2 if fused else 4) * FLOAT * self.model.hidden_size

    def feed_forward_transients(self) -> int:
        """A token's gradients inside the last feed-forward, over what is kept and less the last norm, which is done.

        They are those of the product, which itself is gone by then, of both its factors, and of the output. What is
        computed again comes on top.
        """
        factors = 2 if self.model.feed_forward is FeedForward.swiglu else 1
        gradients = factors * self.wide_bytes + self.hidden_bytes
        again = recomputes(self.config.hardware.recompute, self.model.num_layers - 1)
        done = self.norm_kept(compiled=False) - self.hidden_bytes
        made_again = self.feed_forward_part_kept() if again else 0
        if self.device == "cuda":
            made_again += factors * self.wide_bytes  # silu and product, or gelu
        return gradients - done + made_again
