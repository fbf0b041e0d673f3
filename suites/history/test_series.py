"""A series is named by what is measured, never by what came out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minimax_m2.harness.history.series import series_of
from minimax_m2.harness.record import Canary, Pair, Record, Timing


@pytest.fixture
def timing(record: Record) -> Timing:
    assert record.timing is not None
    return record.timing


MEASURED = [
    {"outcome": "wrong", "utilisation": 7.0, "mean_z2": 2.0, "evidence": ["y at [0]: actual 1"]},
    {
        "canary": Canary(copy_gbps=1.0, gemm_gflops=1.0),
        "paired": Pair(against="b", log_ratio=0.1, low=0.0, high=0.2, blocks=12),
    },
    {"run": "20270101T000000.000000Z", "purpose": "rerun", "code": {"kernel": "ffff"}},
]


@pytest.mark.parametrize("change", MEASURED, ids=lambda change: "-".join(change))
def test_no_measured_quantity_splits_a_series(record: Record, change: dict[str, object]) -> None:
    assert series_of(replace(record, **change)).key == series_of(record).key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "field, value", [("median_us", 9.0), ("best_us", 8.0), ("roof_us", 1.0), ("call", "routing_out")]
)
def test_neither_a_time_nor_the_faster_call_splits_a_series(
    record: Record, timing: Timing, field: str, value: object
) -> None:
    other = replace(record, timing=replace(timing, **{field: value}))  # type: ignore[arg-type]
    assert series_of(other).key == series_of(record).key


@pytest.mark.parametrize("name", ["host", "commit", "torch", "python", "system", "driver"])
def test_machines_and_software_of_a_fleet_share_a_series(record: Record, name: str) -> None:
    assert series_of(replace(record, machine=record.machine | {name: "other"})).key == series_of(record).key


IDENTITY = ["op", "provider", "device", "variant", "case_id"]


@pytest.mark.parametrize("name", IDENTITY)
def test_what_changes_the_meaning_splits_a_series(record: Record, name: str) -> None:
    assert series_of(replace(record, **{name: "other"})).key != series_of(record).key  # type: ignore[arg-type]


def test_another_way_to_take_a_time_is_another_series(record: Record, timing: Timing) -> None:
    looped = replace(record, timing=replace(timing, clock="loop"))
    assert series_of(looped).key != series_of(record).key


@pytest.mark.parametrize("name, value", [("processor", "Xeon"), ("threads", 64)])
def test_another_chip_or_number_of_threads_is_another_series(record: Record, name: str, value: object) -> None:
    other = replace(record, machine=record.machine | {name: value})  # type: ignore[arg-type]
    assert series_of(other).key != series_of(record).key
