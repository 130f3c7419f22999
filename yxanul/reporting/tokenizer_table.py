"""Tokenizers compared: as tables for people, and as a page with plots."""

import html
from collections.abc import Sequence
from itertools import accumulate, pairwise, zip_longest

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text as Line

from yxanul.reporting.data_table import visible
from yxanul.reporting.page import html_page
from yxanul.reporting.plan_table import quantity
from yxanul.tokenizer.compare import (
    CONTEXT_TOKENS,
    EXAMPLE_TOKENS,
    LENGTHS,
    REFERENCE,
    TIMED_CHARACTERS,
    Measurement,
    Occurrences,
    Text,
)

PLOTTED_SHARE = 0.999
"""Of the tokens: longer ones than this share's are left out of the plot of lengths."""


def comparison_tables(text: Text, measured: Sequence[Measurement]) -> RenderableType:
    """What the tokenizers were compared on, and the tables."""
    header = (
        f"{sum(text.documents):,} documents of {sum(text.words):,} words, {text.characters:,} characters, "
        f"{text.bytes:,} bytes"
    )
    sections = [
        ("how much text a token holds", _packing(measured)),
        ("tokens a word, by the length of the document in characters", _fertility(text, measured)),
        ("encoding and decoding", _coding(measured)),
        ("context: what tokens hold, and the first of one document", _context(measured)),
        ("tokens that span words, and how often they occur", _spanning(measured)),
    ]
    return Group(Line(header), *(Group(Line(f"\n{title}", "bold"), section) for title, section in sections))


def _packing(measured: Sequence[Measurement]) -> RenderableType:
    compared = any(each.against_reference is not None for each in measured)
    against = (f"tokens to\n{REFERENCE}'s",) if compared else ()
    table = _table(
        "characters\na token", "bytes\na token", *against, "\nvocabulary", "\nused", "spanning\ntokens", "spanning\nids"
    )
    for each in measured:
        table.add_row(
            each.name,
            f"{each.characters_per_token:.3f}",
            f"{each.bytes_per_token:.3f}",
            *([f"{each.against_reference:+.1%}"] if compared else []),
            f"{each.vocab_size:,}",
            f"{each.used_vocabulary:.1%}",
            f"{each.spanning_tokens:.1%}",
            f"{each.spanning_vocabulary:.1%}",
        )
    caption = "used: ids that occur; spanning: white space between two other characters, of tokens and of ids"
    missing = f"\nagainst GPT-2: not shown, as no tokenizer named {REFERENCE} is compared"
    return Group(table, Line(caption + ("" if compared else missing), "dim"))


def _fertility(text: Text, measured: Sequence[Measurement]) -> RenderableType:
    table = _table("all", *length_names())
    for each in measured:
        ratios = (each.tokens_per_word, *each.tokens_per_word_by_length)
        table.add_row(each.name, *("–" if ratio is None else f"{ratio:.3f}" for ratio in ratios))
    table.add_row("documents", *(f"{count:,}" for count in (sum(text.documents), *text.documents)), style="dim")
    return table


def _coding(measured: Sequence[Measurement]) -> RenderableType:
    table = _table("stock\nMB/s", "bulk, new\nMB/s", "\ntimes", "bulk, known\nMB/s", "\ntimes", "documents\nchanged")
    for each in measured:
        speed = each.speed
        bulk = [
            cell
            for rate in (speed.bulk_new, speed.bulk_known)
            for cell in (["–", "–"] if rate is None else [f"{rate:.2f}", f"{rate / speed.stock:.1f}"])
        ]
        table.add_row(each.name, f"{speed.stock:.2f}", *bulk, f"{each.round_trip_failures:,}")
    caption = (
        f"one thread, the first {quantity(TIMED_CHARACTERS)} characters; the stock library and the bulk encoder take "
        "turns. new: with an empty table of words, known: the same text again; much text lies between\n"
        "changed: by encoding and decoding"
    )
    unlike = ", ".join(each.name for each in measured if not each.speed.same_ids)
    warning = [Line(f"the bulk encoder gave other ids than the stock library: {unlike}", "yellow")] if unlike else []
    return Group(table, Line(caption, "dim"), *warning)


def _context(measured: Sequence[Measurement]) -> RenderableType:
    table = _table(f"{CONTEXT_TOKENS:,}\ntokens", f"{EXAMPLE_TOKENS}\ntokens")
    table.add_column(f"the first {EXAMPLE_TOKENS} tokens\nof the first document", overflow="fold")
    for each in measured:
        example = Line("│", "dim").join(Line(visible(token)) for token in each.example)
        sizes = (each.context_bytes, EXAMPLE_TOKENS * each.bytes_per_token)
        table.add_row(each.name, *(f"{size:,.0f} bytes" for size in sizes), example)
    return table


def _spanning(measured: Sequence[Measurement]) -> RenderableType:
    without = [each.name for each in measured if not each.longest_spanning]
    tables = []
    for each in measured:
        if each.longest_spanning:
            table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
            for heading in (f"{each.name}: the longest", "the most frequent"):
                table.add_column(heading, overflow="fold")
                table.add_column("times", justify="right")
            for pair in zip_longest(each.longest_spanning, each.most_frequent_spanning):
                table.add_row(*(cell for token in pair for cell in _cells(token)))
            tables.append(table)
    none = [Line(f"none in the text: {', '.join(without)}")] if without else []
    return Group(*tables, *none)


def _cells(token: Occurrences | None) -> tuple[Line, str]:
    return (Line(visible(token.token)), f"{token.count:,}") if token else (Line(), "")


def _table(*names: str) -> Table:
    """A column of names that fold, and one of figures for each of `names`."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("\ntokenizer" if any("\n" in name for name in names) else "tokenizer", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def length_names() -> list[str]:
    """The classes of length, for example "<1k", "1k–4k", "≥4k"."""
    borders = [quantity(length) for length in LENGTHS]
    between = [f"{low}–{high}" for low, high in pairwise(borders)]
    return [f"<{borders[0]}", *between, f"≥{borders[-1]}"]


def comparison_page(text: Text, measured: Sequence[Measurement], command: str, date: str) -> str:
    """An HTML page with the plots that needs nothing but itself.

    Args:
        command, date: how and when it was made, to be shown.
    """
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    titles = ("Text that a token holds", "Tokens a word, by the length of the document", "How long the tokens are")
    sizes = [90 + 28 * len(measured), 340, 340]  # pixels
    figure = make_subplots(3, 1, subplot_titles=titles, row_heights=sizes, vertical_spacing=110 / (sum(sizes) + 220))
    longest = max(_longest_plotted(each) for each in measured)
    for index, each in enumerate(measured):
        name = html.escape(each.name)  # plotly reads names as HTML
        color = qualitative.Plotly[index % len(qualitative.Plotly)]
        shared = {"name": name, "legendgroup": str(index), "showlegend": False}
        shares = [count / each.tokens for count in each.tokens_by_bytes[1 : longest + 1]]
        label = f"{each.bytes_per_token:.3f}"
        bars, line = {"marker_color": color}, {"line_color": color, "mode": "lines+markers", "marker_size": 5}
        figure.add_trace(
            go.Bar(x=[each.bytes_per_token], y=[name], text=[label], orientation="h", **bars, **shared), 1, 1
        )
        shared["showlegend"] = True
        figure.add_trace(go.Bar(x=length_names(), y=each.tokens_per_word_by_length, **bars, **shared), 2, 1)
        shared["showlegend"] = False
        figure.add_trace(go.Scatter(x=list(range(1, longest + 1)), y=shares, **line, **shared), 3, 1)
    figure.update_xaxes(title_text="bytes of UTF-8 a token", row=1)
    figure.update_yaxes(type="category", autorange="reversed", row=1)
    figure.update_xaxes(title_text="characters of the document", type="category", row=2)
    figure.update_yaxes(title_text="tokens a word", row=2)
    figure.update_xaxes(title_text="bytes of UTF-8 in the token", row=3)
    figure.update_yaxes(title_text="share of the tokens", tickformat=".0%", rangemode="tozero", row=3)
    figure.update_layout(template="plotly_white", height=sum(sizes) + 330, margin={"t": 60, "b": 60}, bargap=0.25)
    read = f"{sum(text.documents):,} documents, {text.bytes:,} bytes"
    return html_page("Tokenizers compared", [f"{read}, {date}"], command, figure)


def _longest_plotted(measurement: Measurement) -> int:
    """The length in bytes that PLOTTED_SHARE of the tokens do not exceed."""
    shares = accumulate(count / measurement.tokens for count in measurement.tokens_by_bytes)
    return next((length for length, share in enumerate(shares) if share >= PLOTTED_SHARE), 0)
