"""`python -m yxanul.compare_tokenizers tokenizers=[t80k,gpt2,FILE] group=choice key=value ...`: which packs text best.

Encodes the same documents with each tokenizer: how much text a token holds, how much of it spans words, how fast
that goes and whether it comes back unchanged. A tokenizer is a choice of the group (the run's own one with what is
overridden in it) or the path of a tokenizer.json or of its folder. One that is trained on this data has seen most of
the documents, and packs them better than others. Reads all documents, or whole ones of about
`compare_bytes=10_000_000`. Writes a table as JSON and a plot as HTML to `output=FOLDER`.
"""

import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import tokenizers

import yxanul
from yxanul import cli
from yxanul.composition import to_plain
from yxanul.config import CompareConfig, DataConfig, TokenizerConfig, TokenizerKind
from yxanul.data import documents
from yxanul.data.documents import Part, Texts
from yxanul.errors import ConfigError, UserError
from yxanul.tokenizer.choice import choose
from yxanul.tokenizer.compare import Measurement, Text, compare, read_text
from yxanul.tokenizer.load import Tokenizer, sample
from yxanul.tokenizer.superbpe import Progress


def compare_tokenizers(config: CompareConfig) -> int:
    from rich.console import Console

    from yxanul.data.preparation import fetch
    from yxanul.data.progress import phases
    from yxanul.files import atomic_path, output_folder, write_json
    from yxanul.reporting.tokenizer_table import comparison_page, comparison_tables

    console = Console(markup=False, emoji=False)
    chosen = choose(config)
    fetch(config.data)
    parts = documents.open_source(config.data)
    folder = output_folder(config.output)
    with phases(console, "training a tokenizer") as progress:
        loaded = {name: _load(name, choice, config.data, parts, progress) for name, choice in chosen.items()}
    source = Texts(parts, config.data.on_error)
    with console.status("reading the text"):
        texts = source if config.compare_bytes is None else sample(source, config.compare_bytes)
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


def _record(config: CompareConfig, source: Texts, text: Text, measured: list[Measurement]) -> dict[str, Any]:
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


def _load(name: str, choice: TokenizerConfig, data: DataConfig, parts: list[Part], progress: Progress) -> Tokenizer:
    """The tokenizer, trained as a run on this data would train it."""
    from yxanul.data.preparation import tokenizer_for

    try:
        return tokenizer_for(parts, data, choice, progress)
    except ConfigError as error:
        raise UserError(f"tokenizers={name}: {error}") from error
    except UserError as error:
        if choice.path is not None or choice.kind is not TokenizerKind.hub:
            raise UserError(f"tokenizers={name}: {error}") from error
        raise UserError(
            f"tokenizers={name}: {choice.repo} cannot be downloaded ({type(error.__cause__).__name__}); "
            f"give the path of its file instead, for example tokenizers=[/path/to/{name}/tokenizer.json]"
        ) from error


if __name__ == "__main__":
    sys.exit(cli.run(compare_tokenizers, "compare_tokenizers", CompareConfig))
