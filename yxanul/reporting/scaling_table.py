"""The time of a run on more and more GPUs, for people."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from yxanul.reporting.plan_table import duration
from yxanul.scaling import PAYS, Scaling

ASSUMED = "with nominal bandwidths, no latency, the same utilization in smaller micro-batches, optimizers in no time"


def scaling_table(scaling: Scaling) -> RenderableType:
    """A row a number of GPUs, from which number on more do not pay, and why the table ends."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("GPUs", "time", "communication", "speedup", "GPU-hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for size in scaling.sizes:
        table.add_row(
            f"{size.gpus:,}",
            duration(size.seconds),
            f"{size.communication:.1%}",
            f"{scaling.sizes[0].seconds / size.seconds:.3g}",
            f"{size.gpu_hours:.3g}",
        )
    return Group("", table, *(Text(line) for line in (verdict(scaling), ASSUMED)))


def verdict(scaling: Scaling) -> str:
    """How many GPUs pay, and what speaks against twice as many."""
    best, more = scaling.best, scaling.best + 1
    gpus = scaling.sizes[best].gpus
    if more == len(scaling.sizes):
        return f"none of these is too many; {2 * gpus} GPUs cannot be planned: {scaling.end}"
    ratio = scaling.sizes[best].seconds / scaling.sizes[more].seconds
    return (
        f"more than {gpus} GPUs do not pay: {2 * gpus} would be {ratio:.2f} times as fast, "
        f"and twice as many pay from {PAYS:g} times on"
    )
