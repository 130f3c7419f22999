"""Parameters and work of a model, counted from its configuration alone.

Pure arithmetic, so that a plan needs no model; tests hold it against the built model.
"""

from yxanul.config import FeedForward, ModelConfig, Positions
from yxanul.model.embedding import padded_vocab


def layer_matrices(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of the matrices of one layer by name: of attention, then the two of the feed-forward."""
    hidden, wide = model.hidden_size, model.intermediate_size
    keys = model.num_kv_heads * (hidden // model.num_heads)
    gated = model.feed_forward is FeedForward.swiglu
    widening = {"feed_forward.gate_up": (2 * wide, hidden)} if gated else {"feed_forward.up": (wide, hidden)}
    return {
        "attention.qkv": (hidden + 2 * keys, hidden),
        "attention.out": (hidden, hidden),
        **widening,
        "feed_forward.down": (hidden, wide),
    }


def layer_matrix_parameters(model: ModelConfig) -> int:
    """Weights of the matrix products of one layer."""
    return sum(rows * columns for rows, columns in layer_matrices(model).values())


def layer_parameters(model: ModelConfig) -> int:
    """All weights inside the layers and the last norm."""
    norms = (2 * model.num_layers + 1) * model.hidden_size
    return model.num_layers * layer_matrix_parameters(model) + norms


def embedding_parameters(model: ModelConfig, vocab_size: int) -> int:
    """The table, its projection, and learned positions."""
    rank = model.embedding_rank or model.hidden_size
    projection = model.embedding_rank * model.hidden_size if model.embedding_rank else 0
    positions = model.max_seq_len * model.hidden_size if model.positions is Positions.learned else 0
    return padded_vocab(vocab_size) * rank + projection + positions


def head_parameters(model: ModelConfig, vocab_size: int) -> int:
    """The head's own table; none where it is tied with the embedding."""
    return 0 if model.tied else padded_vocab(vocab_size) * model.hidden_size


def parameters(model: ModelConfig, vocab_size: int) -> int:
    """All parameters, the padding of the vocabulary included."""
    return layer_parameters(model) + embedding_parameters(model, vocab_size) + head_parameters(model, vocab_size)


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
