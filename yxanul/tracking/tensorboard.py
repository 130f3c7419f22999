"""Rows as TensorBoard scalars over optimizer steps.

Event files are only ever added to. A resumed run opens a new one with a purge step, which tells
TensorBoard to forget what earlier files hold from that step on.
"""

from pathlib import Path

from yxanul.tracking.rows import Row, scalars

FLUSH_SECONDS = 30  # torch's default of 120 would cost a killed run its last two minutes


class TensorBoardSink:
    """`purge_step` is the first step that this process will log: 1, or the checkpoint's plus 1."""

    def __init__(self, directory: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

        self._writer = SummaryWriter(log_dir=str(directory), purge_step=purge_step, flush_secs=FLUSH_SECONDS)

    def log(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["step"])
        if row["kind"] == "event":
            self._writer.add_text("event", row["message"], row["step"])

    def close(self, summary: Row | None) -> None:
        self._writer.close()
