"""A ledger for people and for papers: as tables of text, which the terminal, Markdown, CSV and the page all show."""

from yxanul.ledger.attribution import Estimate
from yxanul.ledger.ledger import Against, Group, Ledger
from yxanul.ledger.quality import AXES, Reached
from yxanul.ledger.runs import Run
from yxanul.reporting.plan_table import duration, quantity
from yxanul.reporting.report_page import PageTable

NEVER = "never"


def ledger_tables(ledger: Ledger) -> list[PageTable]:
    """What each run cost to the target, where its time went, and of several choices what each was worth."""
    tables = [_costs(ledger), _times(ledger)]
    return [*tables, _choices(ledger)] if len(ledger.groups) > 1 else tables


def _costs(ledger: Ledger) -> PageTable:
    header = ["run", "best", "training", "in all", "tokens", "bytes", "FLOPs", "device-hours"]
    rows = [
        [_name(run), _best(run), *_cost(reached)]
        for group in ledger.groups
        for run, reached in zip(group.runs, group.reached, strict=True)
    ]
    return PageTable(f"To {ledger.target:.4f} bits per byte", header, rows)


def _name(run: Run) -> str:
    return run.name if run.result else f"{run.name} (not finished)"


def _best(run: Run) -> str:
    return "none yet" if run.best is None else f"{run.best:.4f}"


def _cost(reached: Reached | None) -> list[str]:
    if reached is None:
        return [NEVER] * len(AXES)
    times = [duration(reached.training_seconds), duration(reached.total_seconds)]
    counts = [quantity(reached.tokens), quantity(reached.bytes), quantity(reached.flops)]
    return [*times, *counts, f"{reached.device_hours:.3g}"]


def _times(ledger: Ledger) -> PageTable:
    header = ["run", "preparation", "start-up", "warm-up", "training", "evaluation", "in all"]
    rows = []
    for run in (run for group in ledger.groups for run in group.runs):
        spent = run.times
        parts = (spent.preparation, spent.start_up, spent.warm_up, spent.training, spent.evaluation, spent.total)
        rows.append([_name(run), *(f"{seconds:,.1f} s" for seconds in parts)])
    return PageTable("Where the time went", header, rows)


def _choices(ledger: Ledger) -> PageTable:
    than = "the first" if ledger.against is Against.first else "the one before"
    header = ["choice", "seeds", f"times as fast as {than}", "= by learning", "x by throughput"]
    rows = [[group.name, _seeds(group), *_factor(ledger, index)] for index, group in enumerate(ledger.groups)]
    return PageTable(f"What each choice was worth, in {AXES[ledger.axis]}", header, rows)


def _seeds(group: Group) -> str:
    arrived = sum(reached is not None for reached in group.reached)
    return str(len(group.runs)) if arrived == len(group.runs) else f"{arrived} of {len(group.runs)} arrive"


def _factor(ledger: Ledger, index: int) -> list[str]:
    if index == 0:
        return ["1", "1", "1"]
    if index not in ledger.factors:
        return [NEVER] * 3
    found = ledger.factors[index]
    return [_estimate(found.total), _estimate(found.learning), _estimate(found.throughput)]


def _estimate(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.ratio:.3g}"
    sure = "" if estimate.significant else ", not significant"
    return f"{estimate.ratio:.3g} ({estimate.low:.3g} to {estimate.high:.3g}{sure})"
