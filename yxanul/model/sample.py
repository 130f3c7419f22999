"""Text from the model, token by token, without a key-value cache: for the few samples at the end of a run."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from yxanul.model.attention import sdpa
from yxanul.model.sampling import Sampling
from yxanul.model.transformer import Packed, Transformer

DEFAULT = Sampling()


def sample(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    max_seq_len: int,
    end: int,
    generator: torch.Generator,
    sampling: Sampling = DEFAULT,
    agree: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> list[list[int]]:
    """Continue each prompt by up to `num_tokens` ids, stopping at `end`; prompts and continuations are returned.

    All prompts are advanced together as segments of one packed row; each sees its last `max_seq_len` ids.

    Args:
        agree: takes the logits of this process to those that all processes of a sharded model go on with.
    """
    texts = [list(prompt) for prompt in prompts]
    device = next(model.parameters()).device
    open_texts = texts
    for _ in range(num_tokens):
        if not open_texts:
            break
        contexts = [text[-max_seq_len:] for text in open_texts]
        lengths = torch.tensor([len(context) for context in contexts])
        ends = lengths.cumsum(0)
        packed = Packed(
            torch.tensor([token for context in contexts for token in context]),
            torch.cat([torch.arange(length) for length in lengths.tolist()]),
            sdpa((ends - lengths).tolist(), int(ends[-1]), int(ends[-1])),  # as one sequence of segments
        ).map(lambda tensor: tensor.to(device))
        logits = agree(model.next_token_logits(packed, (ends - 1).to(device)).cpu())
        for text, token in zip(open_texts, sampling.choose(logits, generator).tolist(), strict=True):
            text.append(token)
        open_texts = [text for text in open_texts if text[-1] != end]
    return texts
