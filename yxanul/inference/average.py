"""The mean of a run's last checkpoints (stochastic weight averaging, arXiv 1803.05407), as a run of its own."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from yxanul.config import Dtype
from yxanul.files import atomic_folder
from yxanul.inference.loading import CONFIG, open_run
from yxanul.training import checkpoint
from yxanul.training.checkpoint import Saver
from yxanul.training.distributed import ALONE
from yxanul.training.text import NGRAMS, TOKENIZER

KEPT = (CONFIG, "plan.json", TOKENIZER, NGRAMS)
"""Of the run's folder."""


@torch.no_grad()
def average_run(folder: Path, paths: Sequence[Path], target: Path) -> None:
    """Write a run to `target` whose only checkpoint has the mean of the weights of `paths`, and their last step.

    Raises:
        UserError: one of them is damaged.
    """
    run = open_run(folder, torch.device("cpu"), Dtype.fp32)
    mean = {name: torch.zeros_like(tensor) for name, tensor in run.model.state_dict().items()}
    for path in paths:
        checkpoint.load_weights(path, run.model)
        for name, tensor in run.model.state_dict().items():
            mean[name] += tensor / len(paths)
    run.model.load_state_dict(mean)
    with atomic_folder(target) as temporary:
        for name in KEPT:
            if (folder / name).exists():
                shutil.copyfile(folder / name, temporary / name)
        (temporary / "averaged.json").write_text(json.dumps([str(path) for path in paths], indent=2) + "\n")
        saver = Saver(temporary / "checkpoints", 1, ALONE)
        saver.save(run.state, run.model, [])
        saver.wait()
        saver.close()
