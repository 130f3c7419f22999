"""The precision plan as people read it."""

import io

import pytest
from rich.console import Console

from yxanul.precision.plan import PlannedProduct
from yxanul.reporting.precision_table import precision_line, precision_table

M = (1024, 1536)
PRODUCTS = [
    PlannedProduct("blocks.0.attention.qkv", "forward", M, 320, 192, 0.2, "bf16", "kept by precision.high_precision"),
    PlannedProduct("blocks.1.attention.qkv", "forward", M, 320, 192, 0.2, "fp8", "1.20 times as fast in fp8", 1.2),
    PlannedProduct("blocks.2.attention.qkv", "forward", M, 320, 192, 0.2, "fp8", "1.20 times as fast in fp8", 1.2),
    PlannedProduct("blocks.2.attention.qkv", "data gradient", M, 320, 192, 0.1, "fp8", "selected"),
    PlannedProduct("attention", "all", None, None, None, 0.3, "bf16", "scores and softmax"),
]


@pytest.fixture(scope="module")
def lines():
    console = Console(width=200, file=io.StringIO())
    console.print(precision_table(PRODUCTS, emulated=False))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_layers_that_are_treated_alike_share_a_line(lines):
    assert "attention.qkv forward 1,024-1,536 320 192 20.0% bf16 kept by precision.high_precision" in lines
    assert "2 x attention.qkv forward 1,024-1,536 320 192 40.0% fp8 1.20 times as fast in fp8" in lines
    assert "attention.qkv data gradient 1,024-1,536 320 192 10.0% fp8 selected" in lines
    assert "attention all 30.0% bf16 scores and softmax" in lines


def test_totals_are_shares_of_all_flops(lines):
    assert lines[-1].startswith("FLOPs: 50.0% bf16, 50.0% fp8; float32: master weights, moments")


def test_emulation_is_called_so():
    assert precision_line(PRODUCTS, emulated=True).startswith("FLOPs: 50.0% bf16, 50.0% emulated fp8;")
