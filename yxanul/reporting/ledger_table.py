"""A ledger for people and for papers: as tables of text, which the terminal, Markdown, CSV and the page all show."""

from yxanul.ledger.attribution import Estimate, Factor, Shares
from yxanul.ledger.ledger import Against, Group, Ledger
from yxanul.ledger.quality import AXES, Reached, is_bound
from yxanul.ledger.runs import Run
from yxanul.reporting.plan_table import duration, quantity
from yxanul.reporting.report_page import PageTable, Worth

NEVER = "never"
PARTS = ["= by learning", "x by throughput"]
TIMES = {
    Against.first: "times as fast as the first",
    Against.previous: "times as fast as the one before",
    Against.without: "what it leaves out: times as fast as without it",
}
AVERAGE = "Shapley's shares: times as fast, on average over all orders of adding the choices"


def ledger_tables(ledger: Ledger) -> list[PageTable]:
    """What each run cost to the target, where its time went, and of several choices what each was worth."""
    tables = [_costs(ledger), _times(ledger)]
    tables += [_choices(ledger)] if len(ledger.groups) > 1 else []
    return [*tables, _shares(ledger.shares, ledger.axis)] if ledger.shares else tables


def ledger_worth(ledger: Ledger) -> Worth | None:
    """What of a ledger is drawn as bars: Shapley's shares, or else the choices as they were compared, if any was."""
    if ledger.shares:
        factors, whole, cumulative, times = ledger.shares.factors, ledger.shares.whole, True, AVERAGE
    else:
        factors, whole = [factor for factor in ledger.factors if factor], None
        cumulative, times = ledger.against is Against.previous, TIMES[ledger.against]
    title = f"{times[0].upper()}{times[1:]}, in {AXES[ledger.axis]}"
    return Worth(title, factors, cumulative, whole) if factors else None


def _costs(ledger: Ledger) -> PageTable:
    header = ["run", "best", "training", "prepared", "in all", "tokens", "bytes", "FLOPs", "device-hours"]
    rows = [
        [_name(run), _best(run), *_cost(reached, is_bound(run, ledger.target))]
        for group in ledger.groups
        for run, reached in zip(group.runs, group.reached, strict=True)
    ]
    return PageTable(f"To {ledger.target:.4f} bits per byte", header, rows)


def _name(run: Run) -> str:
    return run.name if run.result else f"{run.name} (not finished)"


def _best(run: Run) -> str:
    return "none yet" if run.best is None else f"{run.best:.4f}"


def _cost(reached: Reached | None, bound: bool) -> list[str]:
    if reached is None:
        return [NEVER] * len(AXES)
    at_most = "≤ " if bound else ""
    times = [
        duration(seconds) for seconds in (reached.training_seconds, reached.prepared_seconds, reached.total_seconds)
    ]
    counts = [quantity(reached.tokens), quantity(reached.bytes), quantity(reached.flops)]
    return [f"{at_most}{cost}" for cost in (*times, *counts, f"{reached.device_hours:.3g}")]


def _times(ledger: Ledger) -> PageTable:
    header = ["run", "preparation", "start-up", "warm-up", "training", "evaluation", "in all"]
    rows = []
    for run in (run for group in ledger.groups for run in group.runs):
        spent = run.times
        parts = (spent.preparation, spent.start_up, spent.warm_up, spent.training, spent.evaluation, spent.total)
        rows.append([_name(run), *(f"{seconds:,.1f} s" for seconds in parts)])
    return PageTable("Where the time went", header, rows)


def _choices(ledger: Ledger) -> PageTable:
    first, *others = zip(ledger.groups, ledger.factors, strict=True)
    whole = " (the whole recipe)" if ledger.against is Against.without else ""
    rows = [[f"{first[0].name}{whole}", _seeds(first[0]), "1", "1", "1"]]
    rows += [[group.name, _seeds(group), *_factor(factor)] for group, factor in others]
    header = ["choice", "seeds", TIMES[ledger.against], *PARTS]
    return PageTable(f"What each choice was worth, in {AXES[ledger.axis]}", header, rows)


def _shares(shares: Shares, axis: str) -> PageTable:
    rows = [[each.name, str(each.pairs), *_factor(each)] for each in (*shares.factors, shares.whole)]
    return PageTable(f"{AVERAGE}, in {AXES[axis]}", ["choice", "seeds", "times as fast", *PARTS], rows)


def _seeds(group: Group) -> str:
    arrived = sum(reached is not None for reached in group.reached)
    return str(len(group.runs)) if arrived == len(group.runs) else f"{arrived} of {len(group.runs)} arrive"


def _factor(factor: Factor | None) -> list[str]:
    if factor is None:
        return [NEVER] * 3
    return [_estimate(factor.total), _estimate(factor.learning), _estimate(factor.throughput)]


def _estimate(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.ratio:.3g}"
    sure = "" if estimate.significant else ", not significant"
    return f"{estimate.ratio:.3g} ({estimate.low:.3g} to {estimate.high:.3g}{sure})"
