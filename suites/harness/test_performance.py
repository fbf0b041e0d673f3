"""The tables of docs/performance.md: a ratio where both sides are right and the machine was quiet, else the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.paired import BUSY, Others, PairRecord
from minimax_m2.harness.performance import caption, performance_table
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import Record, Timing

TIMING = Timing(
    shape="decode", call="rms_norm", median_us=2.5, best_us=2.0, calls=24, bytes=10, flops=10, roof_us=1.0
)  # fmt: skip
SIDE = Record.of(judge(find_op("rms_norm").case(T=2), plain()), run="r", timing=TIMING)
PAIR = PairRecord(
    a=SIDE, b=replace(SIDE, provider="peer"), ratio=1.75, low=1.5, high=2.0, blocks=12, processes=2, others=0.0,
    setting={"H": 64}, date="2026-11-22",
)  # fmt: skip


def row(pair: PairRecord) -> str:
    return performance_table([pair]).splitlines()[-1]


def test_a_row_shows_case_times_ratio_interval_and_share() -> None:
    assert row(PAIR) == "| rms_norm | decode H=64 | 2.5 | peer | 2.5 | 1.75 | 1.50 to 2.00 | 40 % |"


def test_a_wrong_side_is_named_and_has_no_ratio() -> None:
    found = row(replace(PAIR, b=replace(PAIR.b, outcome="wrong")))
    assert "peer is wrong" in found
    assert "1.75" not in found


def test_a_ratio_of_a_busy_machine_is_no_result() -> None:
    found = row(replace(PAIR, others=2 * BUSY))
    assert "busy machine" in found
    assert "1.75" not in found


def test_the_caption_names_record_date_and_machine() -> None:
    found = caption([PAIR], Path("ci/results/pairs.jsonl"))
    assert found.startswith("*measured* (ci/results/pairs.jsonl, 2026-11-22, ")
    assert str(SIDE.machine["processor"]) in found


def test_a_comparison_reads_back() -> None:
    assert PairRecord.from_json(PAIR.json) == PAIR


def test_other_work_is_counted_in_cores() -> None:
    assert Others().cores() >= 0.0
