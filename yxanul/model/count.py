"""Parameters, work and memory of a model, counted from its configuration alone.

Pure arithmetic, so that a plan needs no model; tests hold it against the built model.
"""

from yxanul.config import Dtype, FeedForward, ModelConfig, Positions
from yxanul.model.embedding import padded_vocab
from yxanul.model.loss import CHUNK_BYTES


def layer_matrix_parameters(model: ModelConfig) -> int:
    """Weights of the matrix products of one layer."""
    head_dim = model.hidden_size // model.num_heads
    attention = model.hidden_size * head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    matrices = 3 if model.feed_forward is FeedForward.swiglu else 2
    return attention + matrices * model.hidden_size * model.intermediate_size


def layer_parameters(model: ModelConfig) -> int:
    """All weights inside the layers and the last norm."""
    norms = (2 * model.num_layers + 1) * model.hidden_size
    return model.num_layers * layer_matrix_parameters(model) + norms


def embedding_parameters(model: ModelConfig, vocab_size: int) -> int:
    """The tied table, its projection, and learned positions."""
    rank = model.embedding_rank or model.hidden_size
    projection = model.embedding_rank * model.hidden_size if model.embedding_rank else 0
    positions = model.max_seq_len * model.hidden_size if model.positions is Positions.learned else 0
    return padded_vocab(vocab_size) * rank + projection + positions


def parameters(model: ModelConfig, vocab_size: int) -> int:
    """All parameters, the padding of the vocabulary included."""
    return layer_parameters(model) + embedding_parameters(model, vocab_size)


def training_flops_per_token(model: ModelConfig, vocab_size: int, seq_len: int) -> float:
    """FLOPs of forward and backward for one token in a full sequence of `seq_len`.

    Matrix products of layers, factorized embedding and head, and causal attention (a token sees half of its
    sequence on average); 2 a multiply-add, the backward counted as twice the forward.
    """
    rank = model.embedding_rank or model.hidden_size
    projections = 2 * model.embedding_rank * model.hidden_size if model.embedding_rank else 0
    head = padded_vocab(vocab_size) * rank
    products = model.num_layers * layer_matrix_parameters(model) + projections + head
    attention = model.num_layers * 2 * model.hidden_size * (seq_len + 1) / 2
    return 6.0 * (products + attention)


def state_bytes(model: ModelConfig, vocab_size: int) -> int:
    """Weights, gradients and two optimizer moments, float32."""
    return 16 * parameters(model, vocab_size)


def activation_bytes_per_token(model: ModelConfig, dtype: Dtype) -> int:
    """What the backward keeps of one token, embedding and head's inputs included."""
    width = 2 if dtype is Dtype.bf16 else 4
    h, head_dim = model.hidden_size, model.hidden_size // model.num_heads
    keys = 2 * model.num_kv_heads * head_dim
    # Attention: q, k, v before and after norm and rotation, the output of attention; each norm keeps its
    # float32 input and its output; a gated feed-forward keeps gate, up, silu and their product.
    attention = 3 * h + 2 * keys + h
    wide = 4 if model.feed_forward is FeedForward.swiglu else 2
    layer = width * (attention + 2 * h + wide * model.intermediate_size) + 4 * 2 * h
    return model.num_layers * layer + 4 * 4 * h


def training_bytes(model: ModelConfig, vocab_size: int, dtype: Dtype, micro_batch_tokens: int) -> int:
    """Predicted peak memory of a training step: state, activations, and the head's chunk of logits."""
    rank = model.embedding_rank or model.hidden_size
    head = 3 * CHUNK_BYTES + 4 * padded_vocab(vocab_size) * rank
    return state_bytes(model, vocab_size) + micro_batch_tokens * activation_bytes_per_token(model, dtype) + head
