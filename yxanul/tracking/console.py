"""The run as its owner watches it: a live bar on a terminal, plain lines in a pipe or a log.

stage 4 of 10: sequences of 64 tokens
step 120/460  stage 4 (64)  loss 4.512  1.93 bits/byte  2,310 tok/s  MFU 42%  ETA 1:12
eval 120/460  held-out 1.8712 bits/byte  perplexity 61.30  on 2.1 MB
"""

import time
from collections import deque
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from yxanul.tracking.rows import Row

# What a line shows of a row: the metric, its text, and the width that keeps columns in line.
Figures = tuple[tuple[str, str, int], ...]
TRAIN_FIGURES: Figures = (
    ("loss", "loss {:.3f}", 11),
    ("bits_per_byte", "{:.2f} bits/byte", 14),
    ("tokens_per_second", "{:,.0f} tok/s", 13),
    ("mfu", "MFU {:.0%}", 7),
)
EVAL_FIGURES: Figures = (
    ("bits_per_byte", "held-out {:.4f} bits/byte", 0),
    ("perplexity", "perplexity {:,.2f}", 0),
)
SUMMARY_FIGURES: Figures = (
    ("bits_per_byte", "{:.4f} bits/byte", 0),
    ("tokens", "{:,} tokens", 0),
)
PACE_ROWS = 100  # steps whose mean pace foretells the end: smooth, yet soon true of a new stage


class ConsoleSink:
    """Prints to `console`: all rows to a live terminal, else a line every `log_every` steps."""

    def __init__(
        self,
        total_tokens: int,
        total_steps: int,
        num_stages: int,
        log_every: int,
        console: Console,
    ) -> None:
        self._total_steps = total_steps
        self._num_stages = num_stages
        self._log_every = log_every
        self._console = console
        self._pace = _Pace(total_tokens)
        self._bar = _Bar(console, total_tokens) if console.is_interactive else None
        self._stage: int | None = None

    def log(self, row: Row) -> None:
        match row["kind"]:
            case "train":
                self._log_train(row)
            case "eval":
                self._print(self._eval_line(row), style="bold green")
            case "event":
                self._print(f"{self._position('note', row)}  {row['message']}", style="yellow")

    def close(self, summary: Row | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        if summary is not None:
            self._print(_summary_line(summary), style="bold")

    def _log_train(self, row: Row) -> None:
        new_stage = row["stage"] != self._stage
        self._stage = row["stage"]
        if new_stage:
            self._print(
                f"stage {row['stage']} of {self._num_stages}: sequences of {row['seq_len']:,} tokens",
                style="bold cyan",
            )
        eta = _clock(self._pace.seconds_left(row))
        if self._bar is not None:
            description = f"stage {row['stage']}/{self._num_stages} ({row['seq_len']})"
            figures = [self._position("step", row), *_figures(row, TRAIN_FIGURES)]
            self._bar.show(row["tokens"], description, eta, "  ".join(figures))
        elif new_stage or row["step"] % self._log_every == 0 or row["step"] == self._total_steps:
            self._print(self._train_line(row, eta))

    def _train_line(self, row: Row, eta: str) -> str:
        width = len(f"stage {self._num_stages} (2048)")
        stage = f"stage {row['stage']} ({row['seq_len']})".ljust(width)
        return "  ".join([self._position("step", row), stage, *_figures(row, TRAIN_FIGURES), f"ETA {eta}"])

    def _eval_line(self, row: Row) -> str:
        figures = _figures(row, EVAL_FIGURES)
        if row.get("eval_bytes") is not None:
            figures.append(f"on {row['eval_bytes'] / 1e6:,.1f} MB")
        return "  ".join([self._position("eval", row), *figures])

    def _position(self, word: str, row: Row) -> str:
        total = str(self._total_steps)
        return f"{word} {row['step']:>{len(total)}}/{total}"

    def _print(self, line: str, style: str | None = None) -> None:
        # Lines are data: no markup, no colours of rich's own, and no wrapping at column 80.
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


class _Bar(Progress):
    """A progress bar over tokens, with the figures of the last step in a line of their own.

    Beside the bar they would not fit the 80 columns of a plain terminal.
    """

    def __init__(self, console: Console, total_tokens: int) -> None:
        self._figures = ""
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self._task = self.add_task("", total=total_tokens, start=False, eta="")

    def show(self, tokens: int, description: str, eta: str, figures: str) -> None:
        """Draw the state after a step. The bar appears with the first one."""
        self._figures = figures
        self.update(self._task, completed=tokens, description=description, eta=eta)
        if not self.live.is_started:
            self.start_task(self._task)
            self.start()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self._figures, no_wrap=True, overflow="ellipsis")


class _Pace:
    """Foretells the end of training from the tokens and wall time of recent steps.

    Wall time, and not the throughput of a step, for evaluations and checkpoints take time too.
    """

    def __init__(self, total_tokens: int) -> None:
        self._total_tokens = total_tokens
        self._seen: deque[tuple[float, int]] = deque(maxlen=PACE_ROWS)

    def seconds_left(self, row: Row) -> float | None:
        """Seconds from now to the last token, None at the first step.

        That one may have compiled the model, so its own throughput would foretell nonsense.
        """
        self._seen.append((time.monotonic(), row["tokens"]))
        (first_time, first_tokens), (last_time, last_tokens) = self._seen[0], self._seen[-1]
        if last_tokens == first_tokens:
            return None
        seconds_a_token = (last_time - first_time) / (last_tokens - first_tokens)
        return max(0, self._total_tokens - last_tokens) * seconds_a_token


def _figures(row: Row, figures: Figures) -> list[str]:
    return [text.format(row[name]).ljust(width) for name, text, width in figures if row.get(name) is not None]


def _summary_line(summary: Row) -> str:
    figures = _figures(summary, SUMMARY_FIGURES)
    if summary.get("seconds") is not None:
        figures.append(f"in {_clock(summary['seconds'])}")
    return "  ".join(["finished", *figures])


def _clock(seconds: float | None) -> str:
    """Seconds as 1:12 or 1:01:12."""
    if seconds is None:
        return "-:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
