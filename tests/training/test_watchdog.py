"""A run that stands still says where, and one that moves says nothing."""

import logging
import time

import pytest

from yxanul.training import loop
from yxanul.training.watchdog import Watchdog

LOOK = 0.2


@pytest.fixture
def stacks(tmp_path):
    return tmp_path / "stalls.txt"


def stand_still(seconds: float) -> None:
    time.sleep(seconds)


def test_a_stall_is_told_once_with_the_place_and_the_stacks(stacks, caplog):
    with Watchdog(LOOK, stacks) as dog:
        dog.at("here")
        stand_still(6 * LOOK)
        dog.at("there")
        stand_still(4 * LOOK)
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing has moved for {LOOK:g} s: {place}; the stacks of all threads are in {stacks}"
        for place in ("here", "there")
    ]
    assert stacks.read_text().count("in stand_still") == 2


def test_what_moves_is_let_be(stacks, caplog):
    with Watchdog(4 * LOOK, stacks) as dog:
        for number in range(20):
            dog.at(str(number))
            time.sleep(LOOK)
    assert caplog.records == [] and not stacks.exists()


def test_it_ends_with_its_block_and_can_be_left_out(stacks, caplog):
    for seconds in (LOOK, None):
        with Watchdog(seconds, stacks):
            pass
    stand_still(4 * LOOK)
    assert caplog.records == []


def test_a_run_that_hangs_in_a_step_says_in_which(run, tmp_path, monkeypatch, caplog):
    original, taken = loop.add_gradient, []

    def slow(*arguments):
        taken.append(1)
        stand_still(5 * LOOK if len(taken) == 3 else 0)
        return original(*arguments)

    monkeypatch.setattr(loop, "add_gradient", slow)
    with caplog.at_level(logging.WARNING):
        status, _ = run(tmp_path / "run", f"tracking.stall_seconds={LOOK}")
    assert status == 0
    assert any("micro-batch" in record.getMessage() for record in caplog.records)
    assert "in stand_still" in (tmp_path / "run" / "stalls-0.txt").read_text()
