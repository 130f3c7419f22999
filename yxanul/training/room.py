"""Whether a run's checkpoints will fit on its disk, asked before its first step."""

from pathlib import Path

from yxanul.config import Config
from yxanul.files import room
from yxanul.model.memory import checkpoint_bytes


def room_for_checkpoints(config: Config, folder: Path, steps: int | None = None) -> str:
    """The room for a run's checkpoints beyond those that it has, in words.

    Args:
        folder: of the run.
        steps: of its plan; None for as many as checkpoints are kept.

    Raises:
        UserError: there is too little, or the folder cannot be written.
    """
    copies = config.checkpoint.keep + 1  # a new one is written before the oldest is removed
    if steps is not None:
        copies = min(copies, -(-steps // config.checkpoint.every))
    held = sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file())
    needed = max(0, copies * checkpoint_bytes(config) - held)
    return room("hydra.run.dir", folder, needed, f"{copies} checkpoint{'s' if copies > 1 else ''} take up to")
