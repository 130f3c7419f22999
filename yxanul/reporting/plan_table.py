"""The plan of a run as a table for people."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from yxanul.planning import RunPlan
from yxanul.reporting.precision_table import precision_line, precision_table


def duration(seconds: float) -> str:
    """Seconds in the two largest units, e.g. "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
    return f"{seconds / 86400:.1f} days"


def quantity(value: float) -> str:
    """A count in at most four figures with a unit, e.g. "65.5k", "2.61G"."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}" if unit else f"{value:.0f}"
        value /= 1000
    return f"{value:.3g}P"


def plan_table(plan: RunPlan) -> RenderableType:
    """Header, a row a stage with totals, and warnings."""
    layers = f"{quantity(plan.layer_parameters)} in the layers"
    header = (
        f"{quantity(plan.parameters)} parameters ({layers}), computing in {plan.computes} "
        f"on {plan.device}, peak {plan.peak_flops / 1e12:.3g} TFLOP/s; "
        f"layers {'compiled' if plan.kernels.compiled else 'not compiled'}, loss {plan.kernels.cross_entropy}"
        f"{_communication(plan)}"
    )
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    names = ("stage", "length", "seqs", "micro", "steps", "tokens", "bytes", "peak lr", "clip")
    names += ("attention", "memory", "tokens/s", "time")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(
            str(stage.stage),
            str(stage.seq_len),
            f"{stage.sequences:,}",
            str(stage.micro_batches),
            f"{stage.steps:,}",
            quantity(stage.tokens),
            quantity(stage.bytes),
            f"{stage.peak_lr:.2g}",
            f"{stage.grad_clip:g}",
            stage.attention,
            f"{stage.memory_bytes / 2**30:.1f}G",
            quantity(stage.tokens / stage.seconds),
            duration(stage.seconds),
        )
    tokens, num_bytes = sum(stage.tokens for stage in plan.stages), sum(stage.bytes for stage in plan.stages)
    total = ["all", "", "", "", f"{len(plan.steps):,}", quantity(tokens), quantity(num_bytes), "", "", ""]
    memory = max(stage.memory_bytes for stage in plan.stages)
    seconds = sum(stage.seconds for stage in plan.stages)
    table.add_row(*total, f"{memory / 2**30:.1f}G", quantity(tokens / seconds), duration(seconds), style="bold")
    if plan.fp8 is None:
        products: RenderableType = Text(precision_line(plan.products, emulated=False))
    else:
        products = Group("", precision_table(plan.products, plan.emulated))
    return Group(Text(header), table, products, *(Text(line, style="yellow") for line in plan_warnings(plan)))


def _communication(plan: RunPlan) -> str:
    if plan.processes == 1:
        return ""
    if plan.uncounted:
        return f"; communication not counted ({plan.uncounted})"
    return f"; communication {plan.communication:.1%} of the time"


def plan_warnings(plan: RunPlan) -> list[str]:
    """What a user should know before starting."""
    lines = []
    memory = max(stage.memory_bytes for stage in plan.stages)
    if memory > plan.memory_limit:
        lines.append(
            f"predicted memory {memory / 2**30:.1f} GiB is more than the device's {plan.memory_limit / 2**30:.1f} GiB; "
            "lower hardware.micro_batch.<length>"
        )
    if plan.fp8_lost:
        lines.append(f"NOT in FP8 as asked: {plan.fp8_lost}; every product runs in {plan.computes}")
    if plan.emulated:
        lines.append("FP8 is emulated: it shows what FP8 does to learning, and nothing about speed")
    if plan.skipped:
        numbers = ", ".join(map(str, plan.skipped))
        lines.append(
            f"stages too short for a step at this budget, left out: {numbers}; raise train.tokens or train.steps"
        )
    return lines
