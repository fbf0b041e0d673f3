"""The tables of docs/performance.md: a ratio where both sides are right and the machine was quiet, else the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.paired import BUSY, Others, PairRecord, read_pairs
from minimax_m2.harness.performance import caption, performance_table
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import Record, Timing

ROOT = Path(__file__).resolve().parents[2]
# Records that a table of docs/performance.md is made of.
PAGES = [
    ROOT / "ci" / "results" / name
    for name in (
        "pairs-20261122.jsonl",
        "models-20261122.jsonl",
        "gpu-h200-20261123-pairs-3.jsonl",
        "gpu-h200-20261123-pairs-2.jsonl",
        "gpu-h200-20261123-pairs.jsonl",
        "gpu-h200-20261122-pairs-3.jsonl",
        "gpu-h200-20261122-experts.jsonl",
        "pairs-amx-1-20261122.jsonl",
        "pairs-amx-2-20261122.jsonl",
        "gpu-h200-20261122-pairs-2.jsonl",
        "gpu-h200-20261123-peers.jsonl",
    )
]
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


@pytest.mark.parametrize(
    "asked, told", [(1.75, "1.75 met"), (1.8, "1.8 met"), (1.81, "1.81 missed"), (1, "1 met"), (None, "")]
)
def test_a_ratio_that_was_asked_for_is_met_but_for_what_runs_differ_by(asked: float | None, told: str) -> None:
    table = performance_table([replace(PAIR, at_least=asked), replace(PAIR, at_least=1.0)]).splitlines()
    assert table[0].endswith("| of roof | asked |")
    assert table[2].endswith(f"| 40 % | {told} |")


def test_a_wrong_peer_meets_no_target() -> None:
    assert row(replace(PAIR, at_least=1.0, b=replace(PAIR.b, outcome="impossible"))).endswith("| 1 missed |")


def test_other_work_on_the_processor_is_no_matter_to_a_gpu() -> None:
    assert "1.75" in row(replace(PAIR, others=2 * BUSY, a=replace(SIDE, device="gpu")))


def test_the_caption_names_the_gpu() -> None:
    card = SIDE.machine | {"accelerator": "NVIDIA H200", "driver": "580"}
    found = caption([replace(PAIR, a=replace(SIDE, device="gpu", machine=card))], Path("ci/results/pairs.jsonl"))
    assert ", NVIDIA H200, driver 580, torch " in found


@pytest.mark.parametrize("record", PAGES, ids=lambda path: path.name)
def test_the_page_shows_a_record_as_it_is(record: Path) -> None:
    pairs, page = read_pairs(record), (ROOT / "docs" / "performance.md").read_text()
    assert caption(pairs, record) in page
    assert performance_table(pairs) in page


def test_the_caption_names_record_date_and_machine() -> None:
    found = caption([PAIR], Path("ci/results/pairs.jsonl"))
    assert found.startswith("*measured* (ci/results/pairs.jsonl, 2026-11-22, ")
    assert str(SIDE.machine["processor"]) in found


def test_a_comparison_reads_back() -> None:
    assert PairRecord.from_json(PAIR.json) == PAIR


def test_other_work_is_counted_in_cores() -> None:
    assert Others().cores() >= 0.0
