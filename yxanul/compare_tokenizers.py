"""`python -m yxanul.compare_tokenizers tokenizers=[t80k,gpt2,FILE] group=choice key=value ...`: which packs text best.

Encodes the same documents with each tokenizer: how much text a token holds, how much of it spans words, how fast
that goes and whether it comes back unchanged. A tokenizer is a choice of the group (the run's own one with what is
overridden in it) or the path of a tokenizer.json or of its folder. One that is trained on this data has seen most of
the documents, and packs them better than others. Reads all documents, or whole ones of about
`compare_bytes=10_000_000`. Writes a table as JSON and a plot as HTML to `output=FOLDER`.
"""

import difflib
import heapq
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tokenizers

import yxanul
from yxanul import cli
from yxanul.config import CompareConfig, DataConfig, OnError, TokenizerConfig, TokenizerKind, parse, to_plain
from yxanul.data import documents
from yxanul.data.documents import Part
from yxanul.errors import ConfigError, UserError
from yxanul.tokenizer.compare import Measurement, Text, compare, read_text
from yxanul.tokenizer.load import Tokenizer, load_tokenizer
from yxanul.tokenizer.superbpe import Progress


def compare_tokenizers(config: CompareConfig) -> int:
    from rich.console import Console

    from yxanul.data.preparation import fetch
    from yxanul.data.progress import phases
    from yxanul.files import atomic_path, write_json
    from yxanul.reporting.tokenizer_table import comparison_page, comparison_tables

    console = Console()
    chosen = choose(config)
    fetch(config.data)
    parts = documents.open_source(config.data)
    folder = _output_folder(config)
    with phases(console, "training a tokenizer") as progress:
        loaded = {name: _load(name, choice, config.data, parts, progress) for name, choice in chosen.items()}
    source = Source(parts, config.data.on_error)
    with console.status("reading the text"):
        texts = source if config.compare_bytes is None else smallest_hashes(source, config.compare_bytes)
        try:
            text = read_text(texts)
        except ValueError as error:
            raise UserError("the data holds no document to compare tokenizers on; give more") from error
    with phases(console, "encoding") as progress:
        measured = compare(loaded, texts, text, progress)
    console.print(comparison_tables(text, measured))
    if source.skipped:
        console.print(f"rows of the data that gave no document: {source.skipped:,}", style="yellow", highlight=False)
    record = _record(config, source, text, measured)
    table, plot = (folder / f"compare_tokenizers.{suffix}" for suffix in ("json", "html"))
    write_json(table, record)
    with atomic_path(plot) as temporary:
        temporary.write_text(comparison_page(text, measured, record["command"], record["date"]), encoding="utf-8")
    console.print(f"\nwritten:\n  {table}\n  {plot}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _record(config: CompareConfig, source: "Source", text: Text, measured: list[Measurement]) -> dict[str, Any]:
    """All that was found, and with what; ready for JSON."""
    return {
        "command": shlex.join(["python", "-m", "yxanul.compare_tokenizers", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"yxanul": yxanul.__version__, "tokenizers": tokenizers.__version__},
        "data": to_plain(config.data) | {"fingerprint": documents.source_fingerprint(source.parts)},
        "compare_bytes": config.compare_bytes,
        "skipped": source.skipped,
        "text": asdict(text),
        "tokenizers": [asdict(each) for each in measured],
    }


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
    choices = sorted(path.stem for path in (cli.config_dir() / "tokenizer").glob("*.yaml"))
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


def _output_folder(config: CompareConfig) -> Path:
    """Made before the work, so that a wrong path is told at once."""
    folder = Path(config.output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError("output", config.output, "is a file or lies below one; name a folder") from error
    return folder


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


def _load(name: str, choice: TokenizerConfig, data: DataConfig, parts: list[Part], progress: Progress) -> Tokenizer:
    """The tokenizer, trained as a run on this data would train it."""
    from yxanul.data.shards import training_documents

    try:
        return load_tokenizer(
            choice,
            Path(data.cache).expanduser(),
            corpus=lambda: training_documents(parts, data.held_out),
            corpus_fingerprint=f"{documents.source_fingerprint(parts)} {data.held_out}",
            progress=progress,
        )
    except ConfigError as error:
        raise UserError(f"tokenizers={name}: {error}") from error
    except UserError as error:
        if choice.path is not None or choice.kind is not TokenizerKind.hub:
            raise UserError(f"tokenizers={name}: {error}") from error
        raise UserError(
            f"tokenizers={name}: {choice.repo} cannot be downloaded ({type(error.__cause__).__name__}); "
            f"give the path of its file instead, for example tokenizers=[/path/to/{name}/tokenizer.json]"
        ) from error


@dataclass
class Source:
    """The texts of the parts, anew at every iteration; `skipped` counts what gave none in the last one."""

    parts: list[Part]
    on_error: OnError
    skipped: int = 0

    def __iter__(self) -> Iterator[str]:
        self.skipped = 0
        for part in self.parts:
            for row in part.documents():
                if isinstance(row, str):
                    yield row
                elif self.on_error is OnError.stop:
                    raise UserError(f"{row}; mend the file, or go on without such rows by data.on_error=skip")
                else:
                    self.skipped += 1


def smallest_hashes(texts: Iterable[str], at_most: int) -> list[str]:
    """The documents of smallest hash, up to about `at_most` bytes: the same ones in whatever order they come."""
    kept: list[tuple[int, str, int]] = []
    total = 0
    for text in texts:
        size = len(text.encode())
        heapq.heappush(kept, (-documents.hash64(text), text, size))
        total += size
        while total - kept[0][2] >= at_most:
            total -= heapq.heappop(kept)[2]
    return [text for _, text, _ in sorted(kept, reverse=True)]


if __name__ == "__main__":
    sys.exit(cli.run(compare_tokenizers, "compare_tokenizers", CompareConfig))
