"""Records of nights that never were."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minimax_m2.harness.judge import judge
from minimax_m2.harness.op import find_op
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.record import Canary, Record, Timing


@pytest.fixture(scope="session")
def record() -> Record:
    """A timed record of plain torch on the small routing case."""
    timing = Timing(
        shape="decode", call="routing", median_us=41.8, best_us=41.2, calls=60, bytes=5376, flops=2048, roof_us=25.4,
        clock="stopwatch",
    )  # fmt: skip
    found = Record.of(
        judge(find_op("routing").case(T=3), plain()),
        run="20260101T000000.000000Z",
        timing=timing,
        purpose="nightly",
        canary=Canary(copy_gbps=20.0, gemm_gflops=150.0),
    )
    return replace(found, machine=found.machine | {"host": "cpu-a", "commit": "0123456789ab"})
