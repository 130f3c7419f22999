"""What the doctor prints."""

from rich.console import Console

from yxanul.diagnosis.findings import Finding, State, problems
from yxanul.reporting.doctor_table import doctor_table, verdict


def printed(renderable, width: int = 100, **options) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(renderable, **options)
    return capture.get()


def test_the_table_holds_every_finding(look):
    findings = look("data.path=none", "attention=flash")
    shown = "".join(printed(doctor_table(findings), width=400).split())
    assert [finding for finding in findings if "".join(finding.words.split()) not in shown] == []
    assert shown.count("problem") == len(problems(findings)) == 2


def test_words_are_no_markup():
    findings = [Finding("run", "key", State.info, "choose ['*.down'] or [bold]x[/]")]
    assert "choose ['*.down'] or [bold]x[/]" in printed(doctor_table(findings))


def test_the_verdict(look):
    assert printed(verdict(look())).splitlines()[-1] == "the composed run can start here"
    findings = look("data.path=none", "attention=flash")
    lines = printed(verdict(findings), width=40, soft_wrap=True).splitlines()
    assert lines == ["", "the composed run cannot start here:", *(f"  {line.words}" for line in problems(findings))]
