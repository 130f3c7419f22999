"""The weights that a run begins with, where they are another model's."""

from pathlib import Path

from yxanul.config import Config
from yxanul.errors import UserError
from yxanul.inference.loading import newest_checkpoint
from yxanul.model.transformer import Transformer
from yxanul.tokenizer.load import Tokenizer
from yxanul.training import checkpoint


def begin_with(folder: Path, config: Config, model: Transformer, tokenizer: Tokenizer) -> None:
    """Fill a new model with the weights of a run's newest checkpoint, of a checkpoint, or of a Hugging Face folder.

    Raises:
        UserError: it is none of these, or holds another model or one of another tokenizer.
    """
    if (folder / "config.json").is_file():
        from yxanul.inference.stock import from_stock

        from_stock(config, model, folder)
        return
    if (folder / checkpoint.MANIFEST).is_file():
        path = folder
    elif (folder / "checkpoints").is_dir():
        path = newest_checkpoint(folder)
    else:
        raise UserError(f"init_from={folder}: is no run, no checkpoint and no Hugging Face folder; name one")
    state = checkpoint.load_weights(path, model)
    if state.tokenizer != tokenizer.fingerprint:
        raise UserError(f"init_from={folder}: was trained with another tokenizer; compose the same one")
