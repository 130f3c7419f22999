"""What models made of a text, as tables for people."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from yxanul.inference.judge import Verdict
from yxanul.reporting.plan_table import quantity

TITLES = {
    "source": "Bits per byte by source",
    "length": "Bits per byte by the document's length",
    "position": "Bits per byte by the tokens before, at least",
}


def score_tables(verdicts: Sequence[Verdict], by: Sequence[str]) -> Iterator[Table]:
    """All models on all of the text, and one table more for each of `by`."""
    whole = verdicts[0].whole
    table = _table(f"{len(verdicts)} models" if len(verdicts) > 1 else "The model", f"on {whole.bytes:,} bytes of text")
    for name in ("bits per byte", "perplexity a token", "bytes a token", "context", "parameters"):
        table.add_column(name, justify="right")
    for each in verdicts:
        table.add_row(
            each.judged.name,
            f"{each.whole.bits_per_byte:.4f}",
            f"{each.perplexity:.2f}",
            f"{each.whole.bytes / each.whole.tokens:.3f}",
            f"{each.judged.context:,}",
            quantity(each.judged.parameters),
        )
    yield table
    for kind in by:
        yield _by(verdicts, kind)


def _by(verdicts: Sequence[Verdict], kind: str) -> Table:
    table = _table(TITLES[kind], kind)
    table.add_column("bytes", justify="right")
    columns = [{part.name: part for part in each.by[kind]} for each in verdicts]
    for each in verdicts:
        table.add_column(each.judged.name, justify="right", overflow="fold")
    names = dict.fromkeys(name for column in columns for name in column)
    for name in names:
        found = [column.get(name) for column in columns]
        sizes = {part.bytes for part in found if part}
        size = f"{sizes.pop():,}" if len(sizes) == 1 else ""  # of tokens of other tokenizers, positions hold others
        table.add_row(name, size, *(f"{part.bits_per_byte:.4f}" if part else "" for part in found))
    return table


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    return table
