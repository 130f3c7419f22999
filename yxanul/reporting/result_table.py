"""What a finished run came to, for people."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from yxanul.reporting.plan_table import duration, quantity


def result_table(result: dict) -> RenderableType:
    """Bits per byte beside the classic compressors', speed and samples.

    Args:
        result: the content of result.json.
    """
    scores = Table(box=None, header_style="bold", padding=(0, 2))
    scores.add_column(f"held-out text, {quantity(result['eval_bytes'])} bytes")
    scores.add_column("bits per byte", justify="right")
    scores.add_row("this model", f"{result['bits_per_byte']:.4f}", style="bold green")
    scores.add_row("gzip -9", f"{result['gzip_bits_per_byte']:.4f}")
    scores.add_row("xz -9", f"{result['xz_bits_per_byte']:.4f}")
    speed = Text(
        f"{result['steps']:,} steps, {quantity(result['tokens'])} tokens ({quantity(result['bytes'])} bytes) "
        f"in {duration(result['seconds'])}, {result['tokens_per_second']:,.0f} tokens/s "
        f"on {result['device']} in {result['computes']}"
    )
    samples = [
        Text.assemble(f"\nsample {number}: ", (sample["prompt"], "bold cyan"), sample["text"])
        for number, sample in enumerate(result["samples"], 1)
    ]
    return Group(Text(), scores, speed, *samples)


def written(result: dict, folder: Path) -> str:
    """A line for each file or folder that the run wrote; not to be wrapped, so that paths can be copied."""
    names = ["result.json", "metrics.jsonl", "plan.json", "config.yaml", result["checkpoint"], "tensorboard", "wandb"]
    return "\n".join(["\nwritten:", *(f"  {folder / name}" for name in names if (folder / name).exists())])
