"""How fast an index is with many points in it: a series read, a night entered.

``python -m minimax_m2.harness.history.load FOLDER [URL] [--points 200000]`` fills an empty index with nights that
never were, enters one whole night on top as ``nightly add`` does, and prints what it took as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from itertools import islice, product
from pathlib import Path

import numpy as np

from minimax_m2.harness.history.files import Content
from minimax_m2.harness.history.index import CONTEXTS, POINTS, SERIES, Index
from minimax_m2.harness.history.panel import POINTS_OF_SERIES
from minimax_m2.harness.history.store import Store
from minimax_m2.harness.provenance import machine
from minimax_m2.harness.record import Canary, Record, Timing

SEED = 9
# Records of a night of one machine, as docs/nightly.md counts them.
NIGHT = 2740
ROWS_AT_ONCE = 20_000
READ = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What was measured: medians and worst of ``READ`` series read, the night once."""

    database: str
    points: int
    series: int
    fill_s: float
    series_ms: float
    series_worst_ms: float
    night_records: int
    night_s: float
    machine: dict[str, str | int]


def loaded(store: Store, *, points: int, kind: str, progress: Callable[[float], None] = lambda share: None) -> Load:
    """Fill the index of an empty store, then measure it."""
    start = time.perf_counter()
    with store.entering() as index:
        count = _fill(index, points, progress)
    fill_s, start = time.perf_counter() - start, time.perf_counter()
    _, new = store.keep(Content(night(NIGHT), {}))
    night_s = time.perf_counter() - start
    if new != NIGHT:
        raise RuntimeError(f"{new} of {NIGHT} records of a night were new; the index was not empty")
    took = []
    with store.connect() as index:
        for number in np.random.default_rng(SEED).integers(1, count, READ, endpoint=True):
            start = time.perf_counter()
            list(index.rows(POINTS_OF_SERIES, (int(number), "")))
            took.append(1e3 * (time.perf_counter() - start))
    return Load(
        database=kind, points=points, series=count, fill_s=round(fill_s, 2),
        series_ms=round(statistics.median(took), 3), series_worst_ms=round(max(took), 3),
        night_records=NIGHT, night_s=round(night_s, 3), machine=machine(),
    )  # fmt: skip


def _fill(index: Index, points: int, progress: Callable[[float], None]) -> int:
    """Enter ``points`` points of as many series as make a year of nights; how many series."""
    rng, nights = np.random.default_rng(SEED), 365
    series = max(1, points // nights)
    with index.transaction():
        names = [
            (_bytes(rng), f"{n}", f"op{n % 30}", "ours", "cpu", "", "chip", 2, "decode", "loop") for n in range(series)
        ]
        index.enter("series", SERIES, [(*name, f"{n:08x}", "{}", 4096, 2048) for n, name in enumerate(names)])
        index.enter("contexts", CONTEXTS, [(_bytes(rng), json.dumps({"commit": f"{n:012x}"})) for n in range(nights)])
    numbers = [row["id"] for row in index.rows("SELECT id FROM series ORDER BY id")]
    contexts = [row["id"] for row in index.rows("SELECT id FROM contexts ORDER BY id")]
    places, done = _places(points, numbers, nights), 0
    while some := list(islice(places, ROWS_AT_ONCE)):
        with index.transaction():
            index.enter("points", POINTS, [_point(rng, number, night, contexts[night]) for number, night in some])
        done += len(some)
        progress(done / points)
    return series


def _places(points: int, numbers: list[int], nights: int) -> Iterator[tuple[int, int]]:
    """Night by night, as machines write them."""
    every = product(range(nights + 1), numbers)
    return ((number, night % nights) for (night, number), _ in zip(every, range(points), strict=False))


def _point(rng: np.random.Generator, number: int, night: int, context: int) -> tuple[object, ...]:
    us = 40 * float(np.exp(rng.normal(0, 0.01)))
    run = f"{date(2025, 1, 1) + timedelta(days=night):%Y%m%d}T020000.000000Z"
    return (
        _bytes(rng), number, run, "nightly", "pass", "", us, 0.98 * us, 25.0, 20.0, 150.0, "ours@0123456789ab", 0.001,
        -0.004, 0.006, 0.5, "0123456789abcdef", "fedcba9876543210", json.dumps([round(us, 2)] * 12), context,
    )  # fmt: skip


def _bytes(rng: np.random.Generator) -> bytes:
    return rng.bytes(16)


def night(count: int) -> list[Record]:
    """One night of so many cells, whole records."""
    timing = Timing(
        shape="decode", call="op", median_us=40.0, best_us=39.0, calls=60, bytes=4096, flops=2048, roof_us=25.0,
        clock="stopwatch",
    )  # fmt: skip
    first = Record(
        run="20260601T020000.000000Z", op="routing", case={"op": "routing", "T": 1}, case_id="", provider="ours",
        device="cpu", variant="", outcome="pass", utilisation=0.5, mean_z2=1.0, elements=8, unspecified=0, evidence=[],
        timing=timing, machine=machine(), purpose="nightly", canary=Canary(copy_gbps=20.0, gemm_gflops=150.0),
    )  # fmt: skip
    return [replace(first, case_id=f"{n:08x}") for n in range(count)]


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder for the files")
    parser.add_argument("url", nargs="?", default="", help="an empty database, as postgresql://HOST/NAME; else SQLite")
    parser.add_argument("--points", type=int, default=200_000)
    asked = parser.parse_args()
    kind = "PostgreSQL" if asked.url else "SQLite"
    found = loaded(Store(asked.folder, index=asked.url), points=asked.points, kind=kind)
    sys.stdout.write(json.dumps(asdict(found), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
