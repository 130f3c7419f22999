"""Which tokenizers a command line names: choices of the config group, files, or folders of files."""

import difflib
from dataclasses import replace
from pathlib import Path

import tokenizers

from yxanul.composition import config_dir, parse
from yxanul.config import CompareConfig, TokenizerConfig, TokenizerKind
from yxanul.errors import ConfigError, UserError


def choose(config: CompareConfig) -> dict[str, TokenizerConfig]:
    """The tokenizers to compare by the names to show, each unique.

    Raises:
        ConfigError: an entry is neither a choice of the group nor a file, or a key has a value that cannot work.
        UserError: a file is no tokenizer.json.
    """
    if not config.tokenizers:
        raise ConfigError("tokenizers", "[]", "name at least one, for example tokenizers=[t80k,gpt2]")
    if config.compare_bytes is not None and config.compare_bytes <= 0:
        raise ConfigError("compare_bytes", config.compare_bytes, "must be greater than 0, or null for all the data")
    chosen: dict[str, TokenizerConfig] = {}
    for entry in config.tokenizers:
        name, choice = _one(entry, config.tokenizer)
        same = (f"{name}-{number}" for number in range(2, len(config.tokenizers) + 1))
        chosen[next(each for each in (name, *same) if each not in chosen)] = choice
    return chosen


def _one(entry: str, of_run: TokenizerConfig) -> tuple[str, TokenizerConfig]:
    choices = sorted(path.stem for path in (config_dir() / "tokenizer").glob("*.yaml"))
    if entry in choices:
        return entry, _choice(entry, of_run)
    path = Path(entry).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if path.is_file():
        return path.resolve().parent.name if path.name == "tokenizer.json" else path.stem, _of_file(path, of_run)
    nearest = difflib.get_close_matches(entry, choices, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    raise ConfigError(
        "tokenizers",
        entry,
        f"no such choice, tokenizer.json or folder of one{hint}; the choices are {', '.join(choices)}",
    )


def _choice(name: str, of_run: TokenizerConfig) -> TokenizerConfig:
    """A choice of the group as its file says; the run's own one with the command line's overrides."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.get().runtime.choices["tokenizer"] == name:
        return of_run
    return parse(hydra.compose("train", overrides=[f"tokenizer={name}"])).tokenizer


def _of_file(path: Path, of_run: TokenizerConfig) -> TokenizerConfig:
    """A configuration that fits the file."""
    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: is no tokenizer.json that the tokenizers library reads ({reason})") from error
    library.add_special_tokens([of_run.end_of_text])  # as it will be, so that the size is right
    vocab_size = 1 + max(library.get_vocab().values())
    return replace(of_run, kind=TokenizerKind.hub, path=str(path), vocab_size=vocab_size)
