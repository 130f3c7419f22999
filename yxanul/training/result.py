"""What came of a run: samples of its model, and result.json."""

import math
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from yxanul import __version__
from yxanul.config import Config
from yxanul.errors import UserError
from yxanul.files import write_json
from yxanul.model.sample import sample
from yxanul.model.transformer import Transformer
from yxanul.planning import RunPlan
from yxanul.precision.plan import totals
from yxanul.training import checkpoint
from yxanul.training.checkpoint import TrainState
from yxanul.training.distributed import World
from yxanul.training.evaluation import Score
from yxanul.training.loop import Trainer
from yxanul.training.text import Text


def sample_texts(config: Config, text: Text, model: Transformer, world: World) -> list[dict[str, str]]:
    """What the model makes of the beginnings of held-out documents; by all processes, which may hold it together."""
    ids = sample(
        model,
        text.prompts,
        config.evaluate.sample_tokens,
        config.model.max_seq_len,
        text.tokenizer.end_of_text,
        torch.Generator().manual_seed(config.seed),
        agree=world.as_first,
    )
    return [
        {
            "prompt": text.tokenizer.decode(prompt[1:]),
            "text": text.tokenizer.decode(whole[len(prompt) :]),
        }
        for prompt, whole in zip(text.prompts, ids, strict=True)
    ]


def write_result(
    folder: Path,
    plan: RunPlan,
    text: Text,
    trainer: Trainer,
    state: TrainState,
    score: Score,
    samples: list[dict[str, str]],
) -> dict:
    """Write result.json; its presence says that the run is finished."""
    result = {
        "bits_per_byte": score.bits_per_byte,
        "gzip_bits_per_byte": text.held_out.gzip_bits_per_byte,
        "xz_bits_per_byte": text.held_out.xz_bits_per_byte,
        "perplexity": score.perplexity,
        "by_position": [asdict(part) for part in score.by_position],
        "eval_bytes": text.held_out.bytes,
        "held_out": text.held_out.name,
        "corpus": text.corpus.record(),
        "tokens": state.tokens,
        "bytes": state.bytes,
        "steps": state.step,
        "skipped_steps": state.bad_steps,
        "rollbacks": state.rollbacks,
        "seconds": state.seconds,
        "warm_up_seconds": trainer.warm_up_seconds,
        "tokens_per_second": state.tokens / state.seconds,
        "parameters": plan.parameters,
        "ngrams": text.ngrams.entries if text.ngrams else 0,
        "computes": plan.computes,
        "flops_by_format": totals(plan.products),
        "left_fp8": state.left_fp8,
        "kernels": asdict(plan.kernels),
        "device": plan.device,
        "peak_flops": plan.peak_flops,
        "versions": {
            "yxanul": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "checkpoint": str(checkpoint.checkpoints(folder / "checkpoints")[-1].relative_to(folder)),
        "samples": samples,
    }
    if not math.isfinite(score.bits_per_byte):
        raise UserError(f"{folder}: the model's held-out loss is not finite; lower optimizer.lr")
    write_json(folder / "result.json", result)
    return result
