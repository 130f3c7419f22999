"""The precision plan as a table for people: a line for all layers that are treated alike."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from yxanul.precision.plan import PlannedProduct, totals

FLOAT32 = "float32: master weights, moments, statistics of norms, loss and the sums of gradients"


def precision_line(products: Sequence[PlannedProduct], emulated: bool) -> str:
    """The shares of the formats, for example "FLOPs: 76.1% fp8, 23.9% bf16; float32: ..."."""
    found = totals(products)
    shares = ", ".join(
        f"{share:.1%} {'emulated ' if emulated and name == 'fp8' else ''}{name}" for name, share in found.items()
    )
    return f"FLOPs: {shares}; {FLOAT32}"


def precision_table(products: Sequence[PlannedProduct], emulated: bool) -> RenderableType:
    """Each kind of product with its shape, share of the run's FLOPs, format and reason, and the totals."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("product", "of", "M", "N", "K", "FLOPs", "format", "why"):
        table.add_column(name, justify="right" if name in ("M", "N", "K", "FLOPs") else "left")
    for alike in _alike(products):
        first = alike[0]
        table.add_row(
            _kind(first.name) if len(alike) == 1 else f"{len(alike)} x {_kind(first.name)}",
            first.role,
            _sizes(first.m),
            _sizes(first.n),
            _sizes(first.k),
            f"{sum(product.share for product in alike):.1%}",
            first.format,
            first.reason,
        )
    return Group(table, Text(precision_line(products, emulated)))


def _alike(products: Sequence[PlannedProduct]) -> list[list[PlannedProduct]]:
    """The products of the same matrix and role in the same format for the same reason, in the order of the plan."""
    found: dict[tuple, list[PlannedProduct]] = {}
    for product in products:
        found.setdefault((_kind(product.name), product.role, product.format, product.reason), []).append(product)
    return list(found.values())


def _kind(name: str) -> str:
    """Without the layer's number: "blocks.3.attention.qkv" -> "attention.qkv"."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def _sizes(value: tuple[int, ...] | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{min(value):,}" if min(value) == max(value) else f"{min(value):,}-{max(value):,}"
