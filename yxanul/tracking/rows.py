"""The names of the metrics, in one place.

A row is a plain flat dict, and these types only say what it holds. A figure that cannot be known
(the MFU of a device without a known peak) is None or left out, and every sink copes with that.
Further numbers may be added to a row: the record, TensorBoard and wandb carry whatever they find.
"""

from typing import Any, Literal, NotRequired, TypedDict

Row = dict[str, Any]


class TrainRow(TypedDict, total=False):
    """One optimizer step."""

    kind: Literal["train"]
    step: int  # of the optimizer, the first is 1
    stage: int  # of the curriculum, the first is 1
    seq_len: int  # tokens
    tokens: int  # trained on since step 1, this step included
    bytes: int  # of text, likewise
    loss: float  # nats per token
    bits_per_byte: float  # of the training batch
    lr: float
    grad_norm: float  # before clipping
    tokens_per_second: float
    bytes_per_second: float
    mfu: float | None  # share of the device's peak, 0 to 1
    memory_gb: float | None  # peak of the device
    seconds: float  # since step 1, summed over resumes


class EvalRow(TypedDict, total=False):
    """One pass over the held-out text."""

    kind: Literal["eval"]
    step: int
    tokens: int  # trained on so far
    bytes: int  # trained on so far
    bits_per_byte: float  # of the held-out text
    perplexity: float  # per token: not comparable across tokenizers
    eval_bytes: int  # of held-out text
    seconds: float  # since step 1, summed over resumes, without this evaluation
    evaluation_seconds: float  # of this evaluation


class PrecisionRow(TypedDict, total=False):
    """How FP8 treats the numbers of each layer: `<layer>/<input, weight or gradient>/<figure>` beside these."""

    kind: Literal["precision"]
    step: int


class StartRow(TypedDict):
    """What a start of the run cost before its first step, and what it is judged on."""

    kind: Literal["start"]
    step: int  # of the checkpoint that it goes on from
    start_up_seconds: float  # of this start: imports, plan, data, model, without preparation
    preparation_seconds: float  # of making tokenizer and tokens, by whatever run did it first
    held_out: str  # the text and the context of evaluation: runs in which it differs are not to be compared


class EventRow(TypedDict):
    """Something worth a sentence: a resume, a fallback, a skipped file."""

    kind: Literal["event"]
    step: int
    message: str
    warm_up_seconds: NotRequired[float]


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by the names that plots use: `train/loss`, `eval/bits_per_byte`.

    The step is the axis of those plots, so it is not among them.
    """
    return {
        f"{row['kind']}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and name != "step"
    }
