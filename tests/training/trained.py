"""What a trainer leaves behind, and its optimizer."""

import torch

from yxanul.config import OptimizerConfig
from yxanul.tracking import read_rows

OPTIMIZER = OptimizerConfig(lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, muon=None)


def rows(trainer, kind: str = "train") -> list[dict]:
    record = trainer.saver.folder.parent / "metrics.jsonl"
    return [row for row in read_rows(record) if row["kind"] == kind] if record.exists() else []


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
