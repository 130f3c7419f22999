"""The frame of the pages with plots: a file that needs nothing but itself, so that it can be sent and kept."""

import html
from collections.abc import Sequence
from typing import Any


def html_page(title: str, about: Sequence[str], command: str, figure: Any) -> str:
    """An HTML page of a plotly figure.

    Args:
        about: lines about what is plotted and when, to stand above it, as plain text.
        command: what made it, likewise.
    """
    plots = figure.to_html(
        full_html=False, include_plotlyjs=True, config={"displaylogo": False, "showSendToCloud": False}
    )
    lines = "<br>".join([*map(html.escape, about), f"<code>{html.escape(command)}</code>"])
    title = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        "<style>body { font: 15px/1.5 sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; }\n"
        f"code {{ overflow-wrap: anywhere; }}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>{lines}</p>\n{plots}\n</body>\n</html>\n"
    )
