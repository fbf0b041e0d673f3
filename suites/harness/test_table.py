"""The table of a run: a column stands only where some cell has something to say in it."""

from __future__ import annotations

from dataclasses import replace

from minimax_m2.harness.matrix import Cell
from minimax_m2.harness.op import find_op
from minimax_m2.harness.record import Record, Timing
from minimax_m2.harness.summary import SLOW_BELOW, Line
from minimax_m2.harness.table import run_table
from minimax_m2.harness.verdict import Outcome, Verdict

TIMED = Timing(shape="prefill", call="swiglu", median_us=100.0, best_us=90.0, calls=9, bytes=1, flops=1, roof_us=50.0)


def line(share: float) -> Line:
    verdict = Verdict(
        outcome=Outcome.PASS, op="swiglu", case=find_op("swiglu").case(), provider="mine", device="cpu", variant=""
    )
    record = Record.of(verdict, run="20260101T000000.000000Z", timing=replace(TIMED, roof_us=100.0 * share))
    return Line(Cell("swiglu", "mine", "cpu", ""), [record])


def test_a_slow_cell_is_named_and_a_table_without_has_no_column_for_it() -> None:
    fast, slow = line(2 * SLOW_BELOW), line(SLOW_BELOW / 2)
    both = run_table([fast, slow]).columns
    assert (both[-1].header, list(both[-1].cells)) == ("note", ["", "[dim]slow[/]"])
    assert run_table([fast]).columns[-1].header == "same bits"
