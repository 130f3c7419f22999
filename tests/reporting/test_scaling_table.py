"""The table of more and more GPUs: its rows, and the line that says where they stop paying."""

import pytest
from rich.console import Console

from yxanul.reporting.plan_table import duration
from yxanul.reporting.scaling_table import ASSUMED, scaling_table, verdict
from yxanul.scaling import Scaling, Size

TIMES = [Size(1, 7200.0, 0.0), Size(2, 3690.0, 90.0), Size(4, 2000.0, 400.0), Size(8, 1600.0, 600.0)]


def test_a_row_a_size(capsys):
    Console(width=120, no_color=True).print(scaling_table(Scaling(TIMES, "no more")))
    blank, header, *rows, line, assumed = capsys.readouterr().out.splitlines()
    assert blank == "" and header.split() == ["GPUs", "time", "communication", "speedup", "GPU-hours"]
    expected = [
        (1, "0.0%", 1, 2),
        (2, "2.4%", "1.95", "2.05"),
        (4, "20.0%", "3.6", "2.22"),
        (8, "37.5%", "4.5", "3.56"),
    ]
    for row, size, (gpus, *figures) in zip(rows, TIMES, expected, strict=True):
        assert row.split() == [str(cell) for cell in (gpus, *duration(size.seconds).split(), *figures)]
    assert (line, assumed) == (verdict(Scaling(TIMES, "no more")), ASSUMED)


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        (TIMES, "more than 4 GPUs do not pay: 8 would be 1.25 times as fast, and twice as many pay from 1.5 times on"),
        (TIMES[:3], "none of these is too many; 8 GPUs cannot be planned: it is so"),
        (TIMES[:1], "none of these is too many; 2 GPUs cannot be planned: it is so"),
    ],
)
def test_the_verdict(sizes, line):
    assert verdict(Scaling(sizes, "it is so")) == line
