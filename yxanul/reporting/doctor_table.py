"""What was found on this machine as a table for people."""

from itertools import groupby

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from yxanul.diagnosis.findings import Finding, State, problems

STYLES = {State.ok: "green", State.info: "dim", State.problem: "bold red"}


def doctor_table(findings: list[Finding]) -> RenderableType:
    """A row a finding, the topics one below the other."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for style in ("bold", ""):
        table.add_column(style=style, no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for topic, of_topic in groupby(findings, lambda finding: finding.topic):
        for index, finding in enumerate(of_topic):
            state = Text("" if finding.state is State.info else finding.state.value, STYLES[finding.state])
            table.add_row("" if index else topic, finding.subject, state, Text(finding.words))
    return table


def verdict(findings: list[Finding]) -> Text:
    """Whether the run could start, and if not a line for each problem."""
    found = problems(findings)
    if not found:
        return Text("\nthe composed run can start here", "green")
    lines = "".join(f"\n  {finding.words}" for finding in found)
    return Text(f"\nthe composed run cannot start here:{lines}", "red")
