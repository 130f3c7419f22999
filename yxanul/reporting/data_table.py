"""What a corpus holds and what a run would read of it, as text for people."""

from pathlib import Path

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from yxanul.config import DataConfig, DataKind
from yxanul.data.documents import source_files
from yxanul.data.inspection import SAMPLE_TOKENS, Inspection, Sequence, StageReading
from yxanul.data.shards import Corpus
from yxanul.tokenizer.load import Tokenizer

SKIPS_SHOWN = 20
BAR_WIDTH = 24  # characters
WHITE_SPACE = {" ": "·", "\n": "⏎", "\t": "⇥"}


def corpus_summary(tokenizer: Tokenizer, corpus: Corpus) -> str:
    """A few lines: tokens, bytes, what was skipped, and where it lies."""
    bytes_per_token = corpus.bytes / max(corpus.tokens, 1)
    lines = [
        f"{corpus.tokens:,} tokens of {corpus.bytes:,} bytes ({bytes_per_token:.3f} bytes a token) "
        f"in {corpus.documents:,} documents",
        f"{len(corpus.shards):,} of {corpus.parts:,} shards in {corpus.folder}",
        f"tokenizer {tokenizer.path}",
    ]
    if corpus.skipped:
        lines.append(f"{corpus.skipped:,} rows gave no document; {corpus.folder / 'manifest.json'} names them")
    return "\n".join(lines)


def corpus_overview(data: DataConfig, tokenizer: Tokenizer, corpus: Corpus) -> str:
    """The summary, with where the text comes from, what is held out of it and the first of what was skipped."""
    if data.kind is DataKind.stdlib:
        source = "the Python standard library"
    else:
        files = len(source_files(Path(data.path).expanduser()))
        source = f"{files:,} {'file' if files == 1 else 'files'} at {data.path}"
    held_out = sum(shard.held_out_documents for shard in corpus.shards)
    held_out_bytes = sum(shard.held_out_bytes for shard in corpus.shards)
    skips = [skip for shard in corpus.shards for skip in shard.skips][:SKIPS_SHOWN]
    advice = "" if held_out else "; a run needs one at least, raise data.held_out"
    lines = [
        f"{source}, in {corpus.parts:,} {'part' if corpus.parts == 1 else 'parts'}",
        f"held out, never trained on: {held_out:,} documents of {held_out_bytes:,} bytes{advice}",
        corpus_summary(tokenizer, corpus),
        *(f"  {visible(skip, {})}" for skip in skips),
    ]
    if len(skips) < corpus.skipped:
        lines.append(f"  and {corpus.skipped - len(skips):,} more")
    return "\n".join(lines)


def inspection_tables(found: Inspection, tokenizer: Tokenizer) -> RenderableType:
    """Lengths, duplicates, what the stages cut, and the first sequences of one."""
    sections = [
        ("lengths of the training documents, in tokens with their end-of-text token", _lengths(found)),
        ("duplicates among the training documents", _duplicates(found)),
        ("what each stage reads and cuts", _stages(found)),
    ]
    shown = found.shown
    if not shown.steps:
        sections.append((f"stage {shown.stage} gets no step at this budget, so none of its sequences is read", Text()))
    elif found.sequences:
        title = (
            f"the first {len(found.sequences):,} of stage {shown.stage}'s {shown.sequences:,} sequences of "
            f"{shown.seq_len:,} tokens, read from step {found.first_step:,} on"
        )
        sections.append((title, _sequences(found.sequences, tokenizer)))
    return Group(*(Group(Text(f"\n{title}", "bold"), section) for title, section in sections))


def _lengths(found: Inspection) -> RenderableType:
    table = _table("tokens", "", "documents", "share", "of tokens")
    most = max(each.documents for each in found.lengths.bins)
    for each in found.lengths.bins:
        table.add_row(
            f"{each.begin:,}–{2 * each.begin - 1:,}" if each.begin > 1 else "1",
            Bar(most, 0, each.documents, width=BAR_WIDTH),
            f"{each.documents:,}",
            _percent(each.documents / found.documents),
            _percent(each.tokens / found.tokens),
        )
    lengths = found.lengths
    return Group(table, Text(f"median {lengths.median:,.0f}, mean {lengths.mean:,.1f}, longest {lengths.longest:,}"))


def _duplicates(found: Inspection) -> RenderableType:
    repeated = found.duplicates
    if not repeated.documents:
        return Text(f"none: all {found.documents:,} texts differ")
    return Text(
        f"{repeated.documents:,} of {found.documents:,} documents ({_percent(repeated.documents / found.documents)}, "
        f"with {_percent(repeated.tokens / found.tokens)} of the tokens) have a text that occurs before\n"
        f"the most frequent text occurs {repeated.times:,} times and begins:\n  {visible(repeated.beginning)}"
    )


def _stages(found: Inspection) -> RenderableType:
    table = _table("stage", "length", "steps", "sequences", "tokens", "epochs", "crossing", "longer", "in them")
    for stage in found.stages:
        table.add_row(
            f"{stage.stage}",
            f"{stage.seq_len:,}",
            *_amounts([stage], found.tokens),
            "" if stage.crossing is None else _percent(stage.crossing),
            _percent(stage.longer),
            _percent(stage.longer_tokens),
        )
    table.add_row("all", "", *_amounts(found.stages, found.tokens), style="bold")
    caption = Text(
        f"crossing: of a stage's first {SAMPLE_TOKENS:,} tokens, the sequences where a document begins after another\n"
        "longer: of all documents, those above the length (always cut); in them: of all tokens, theirs",
        "dim",
    )
    epochs = sum(stage.tokens for stage in found.stages) / found.tokens
    notes = [Text(f"the budget reads the data {epochs:.2f} times", "yellow")] if epochs > 1 else []
    short = ", ".join(str(stage.stage) for stage in found.stages if not stage.steps)
    if short:
        notes.append(Text(f"stages too short for a step at this budget: {short}", "yellow"))
    return Group(table, caption, *notes)


def _amounts(stages: list[StageReading], corpus_tokens: int) -> list[str]:
    """Steps, sequences, tokens and epochs, of all `stages` together."""
    tokens = sum(stage.tokens for stage in stages)
    steps, sequences = sum(stage.steps for stage in stages), sum(stage.sequences for stage in stages)
    return [f"{steps:,}", f"{sequences:,}", f"{tokens:,}", f"{tokens / corpus_tokens:.4f}"]


def _sequences(sequences: list[Sequence], tokenizer: Tokenizer) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for number, sequence in enumerate(sequences, 1):
        table.add_row(f"{number:,}", _tokens(sequence, tokenizer))
    legend = (
        f"▶ attention starts anew, [{tokenizer.decode([tokenizer.end_of_text])}] a document begins, │ between tokens\n"
        "· space, ⏎ newline, ⇥ tab, � part of a character"
    )
    return Group(Text(legend, "dim"), table)


def _tokens(sequence: Sequence, tokenizer: Tokenizer) -> Text:
    text = Text()
    starts = set(sequence.starts.tolist())
    for position, token in enumerate(sequence.tokens.tolist()):
        text.append(*(("▶", "bold green") if position in starts else ("│", "dim")))
        content = visible(tokenizer.decode([token]))
        text.append(*((f"[{content}]", "bold magenta") if token == tokenizer.end_of_text else (content,)))
    return text


def visible(text: str, white_space: dict[str, str] = WHITE_SPACE) -> str:
    """`text` in one line: white space as `white_space` shows it, whatever else does not print as its escape."""
    return "".join(
        white_space.get(character) or (character if character.isprintable() else ascii(character)[1:-1])
        for character in text
    )


def _table(*names: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _percent(share: float) -> str:
    return f"{share:.1%}" if share == 0 or share >= 0.001 else "<0.1%"
