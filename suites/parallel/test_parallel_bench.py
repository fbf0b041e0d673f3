"""The computed time of a step follows from its parts: weights in shares, other steps undivided, collectives between."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimax_m2.harness import fused_bench
from minimax_m2.harness.parallel_bench import (
    LINKS,
    Device,
    collective_us,
    collectives_table,
    device,
    step_us,
    table,
    weight_bytes,
)
from minimax_m2.harness.record import read

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "ci" / "results" / "gpu-h100-20261122.jsonl"
NVLINK, ETHERNET = LINKS


def test_one_token_reads_its_projections_and_eight_experts() -> None:
    assert weight_bytes(1) == 3072 * (6144 * 2 + 1024 * 2) + 8 * 3 * 3072 * 1536


@pytest.mark.parametrize(
    "ranks, size, expected",
    [(1, 8, 0.0), (2, 45_000_000, 3 + 100), (4, 45_000_000, 6 * 3 + 150), (4, 0, 2 * 3), (5, 0, 3 * 3)],
)
def test_an_all_reduce_takes_the_faster_of_ring_and_doubling(ranks: int, size: int, expected: float) -> None:
    # derived: sums of at most 7 float64 terms of about 100
    assert collective_us("all_reduce", size, ranks, NVLINK) == pytest.approx(expected, rel=1e-12)


def test_a_step_of_one_rank_has_no_talk() -> None:
    on = Device(bytes_per_s=1e12, other_us=10.0)
    assert step_us(1, 1, NVLINK, on) == step_us(1, 1, ETHERNET, on) == 62 * (weight_bytes(1) / 1e6 + 10.0)


def test_the_table_of_the_docs_is_what_the_records_give() -> None:
    assert table(device(read(RECORDS))) in (ROOT / "docs" / "parallel.md").read_text()


def test_the_measured_sums_of_the_docs_are_what_the_records_give() -> None:
    records = ROOT / "ci" / "results" / "gpu-h200x2-20261122-collectives.jsonl"
    assert collectives_table(records) in (ROOT / "docs" / "parallel.md").read_text()


def test_the_sums_inside_kernels_of_the_docs_are_what_the_records_give() -> None:
    records = ROOT / "ci" / "results" / "gpu-h200x2-20261123-fused.jsonl"
    assert fused_bench.table(records) in (ROOT / "docs" / "parallel.md").read_text()


def test_records_that_lack_a_step_are_refused() -> None:
    records = [record for record in read(RECORDS) if record.op != "routing"]
    with pytest.raises(ValueError, match="no decode timing of routing"):
        device(records)
