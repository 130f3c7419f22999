"""The table of a sweep's runs."""

from rich.console import Console

from yxanul.sweep.runs import JobRecord
from yxanul.sweep.states import RunState, State
from yxanul.sweep.table import logs, sweep_table


def test_the_table_says_what_each_run_does(tmp_path):
    job = JobRecord("slurm", "12", 1, "here")
    runs = [
        RunState(tmp_path / "a", "seed=1", State.finished, 10, 10, 1.23456, job, tmp_path / "a.log"),
        RunState(tmp_path / "b", "seed=2", State.failed, 1000, 2000, log=tmp_path / "b.log"),
        RunState(tmp_path / "c", "seed=[3]", State.missing),
    ]
    console = Console(width=200, record=True)
    console.print(sweep_table(tmp_path, runs))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert lines[1:] == [
        ["run", "state", "step", "bits", "per", "byte", "job"],
        ["seed=1", "finished", "10", "of", "10", "1.2346", "12"],
        ["seed=2", "failed", "1,000", "of", "2,000"],
        ["seed=[3]", "not", "started"],
        ["3", "runs:", "1", "finished,", "1", "failed,", "1", "not", "started"],
    ]
    assert logs(runs) == f"  log of seed=2: {tmp_path}/b.log\n"
