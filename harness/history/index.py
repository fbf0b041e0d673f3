"""The index of a store: SQLite tables of series and points, derived from the files and never the only copy."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from minimax_m2.harness.history.series import series_of
from minimax_m2.harness.record import Record

SCHEMA = 1
TABLES = """
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, records INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, op TEXT, provider TEXT, device TEXT, variant TEXT, chip TEXT,
    threads INTEGER, shape TEXT, clock TEXT, case_id TEXT, case_json TEXT, bytes INTEGER, flops INTEGER);
CREATE TABLE IF NOT EXISTS contexts (id INTEGER PRIMARY KEY, text TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS points (
    digest BLOB PRIMARY KEY, series INTEGER NOT NULL REFERENCES series, run TEXT NOT NULL, purpose TEXT NOT NULL,
    outcome TEXT NOT NULL, evidence TEXT NOT NULL, us REAL, best_us REAL, roof_us REAL, copy_gbps REAL,
    gemm_gflops REAL, against TEXT, log_ratio REAL, low REAL, high REAL, utilisation REAL, kernel TEXT NOT NULL,
    context INTEGER NOT NULL REFERENCES contexts) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS points_of_series ON points (series, run);
CREATE INDEX IF NOT EXISTS points_of_run ON points (run);
"""


def open_index(path: Path) -> sqlite3.Connection:
    """An index to write to, made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    index = sqlite3.connect(path, timeout=60)
    index.execute("PRAGMA journal_mode=WAL")
    # What a power cut takes from the index, the files give back.
    index.execute("PRAGMA synchronous=NORMAL")
    if is_new:
        index.executescript(TABLES)
        index.execute(f"PRAGMA user_version={SCHEMA}")
    return index


def insert(index: sqlite3.Connection, name: str, records: Iterable[Record]) -> int:
    """Enter one file: how many of its records no file before had. The caller's transaction makes it all or nothing."""
    series = _Numbers(index, "series", "key")
    contexts = _Numbers(index, "contexts", "text")
    rows = [_point(record, series, contexts) for record in records]
    before = index.total_changes
    index.executemany(f"INSERT OR IGNORE INTO points VALUES ({','.join('?' * 18)})", rows)
    new = index.total_changes - before
    index.execute("INSERT INTO files VALUES (?, ?)", (name, len(rows)))
    return new


class _Numbers:
    """Numbers of the rows of a table by their text; rows are made where they are asked for."""

    def __init__(self, index: sqlite3.Connection, table: str, column: str) -> None:
        self._index, self._table, self._column = index, table, column
        self._known: dict[str, int] = dict(index.execute(f"SELECT {column}, id FROM {table}").fetchall())

    def of(self, text: str, **values: object) -> int:
        if text not in self._known:
            names = [self._column, *values]
            marks = ",".join("?" * len(names))
            made = self._index.execute(
                f"INSERT INTO {self._table} ({','.join(names)}) VALUES ({marks})", (text, *values.values())
            )
            assert made.lastrowid is not None, "a row that was inserted has a number"
            self._known[text] = made.lastrowid
        return self._known[text]


def _point(record: Record, series: _Numbers, contexts: _Numbers) -> tuple[object, ...]:
    timing, canary, paired, line = record.timing, record.canary, record.paired, record.json
    name = series_of(record)
    number = series.of(
        name.key,
        **{key: getattr(name, key) for key in name.__slots__},
        case_json=json.dumps(record.case, sort_keys=True),
        bytes=None if timing is None else timing.bytes,
        flops=None if timing is None else timing.flops,
    )
    context = {**record.machine, **{key: value for key, value in record.code.items() if key != "kernel"}}
    return (
        hashlib.sha256(line.encode()).digest()[:16],
        number,
        record.run,
        record.purpose,
        record.outcome,
        "\n".join(record.evidence) if record.outcome != "pass" else "",
        timing and timing.median_us,
        timing and timing.best_us,
        timing and timing.roof_us,
        canary and canary.copy_gbps,
        canary and canary.gemm_gflops,
        paired and paired.against,
        paired and paired.log_ratio,
        paired and paired.low,
        paired and paired.high,
        record.utilisation,
        str(record.code.get("kernel", "")),
        contexts.of(json.dumps(context, sort_keys=True)),
    )
