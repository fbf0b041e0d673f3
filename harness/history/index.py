"""The index of a store: tables of series and points, derived from the files and never the only copy.

The statements are written once, for every database: ``?`` stands for a value, rows are read by name. SQLite is here,
a file beside the store's; PostgreSQL is in ``postgres.py``, by URL.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from minimax_m2.harness.history.series import series_of
from minimax_m2.harness.record import Record

SCHEMA = 3
# What databases call differently: a number that they give, bytes, text in the order of its bytes, and a table that is
# kept in the order of its key.
TABLES = """
CREATE TABLE about (schema INTEGER NOT NULL);
CREATE TABLE files (name {text} PRIMARY KEY, records INTEGER NOT NULL);
CREATE TABLE series (
    id {number}, digest {bytes} UNIQUE NOT NULL, key {text} NOT NULL, op {text}, provider {text}, device {text},
    variant {text}, chip {text}, threads BIGINT, shape {text}, clock {text}, case_id {text}, case_json {text},
    bytes BIGINT, flops BIGINT);
CREATE TABLE contexts (id {number}, digest {bytes} UNIQUE NOT NULL, text {text} NOT NULL);
CREATE TABLE points (
    digest {bytes} PRIMARY KEY, series BIGINT NOT NULL REFERENCES series, run {text} NOT NULL,
    purpose {text} NOT NULL, outcome {text} NOT NULL, evidence {text} NOT NULL, us DOUBLE PRECISION,
    best_us DOUBLE PRECISION, roof_us DOUBLE PRECISION, copy_gbps DOUBLE PRECISION, gemm_gflops DOUBLE PRECISION,
    against {text}, log_ratio DOUBLE PRECISION, low DOUBLE PRECISION, high DOUBLE PRECISION,
    utilisation DOUBLE PRECISION, kernel {text} NOT NULL, bits {text} NOT NULL,
    samples {text} NOT NULL, context BIGINT NOT NULL REFERENCES contexts) {ordered};
CREATE INDEX points_of_series ON points (series, run);
CREATE INDEX points_of_run ON points (run);
"""
NAMES = ("about", "points", "contexts", "series", "files")
SERIES = (
    "digest", "key", "op", "provider", "device", "variant", "chip", "threads", "shape", "clock", "case_id",
    "case_json", "bytes", "flops",
)  # fmt: skip
CONTEXTS = ("digest", "text")
POINTS = (
    "digest", "series", "run", "purpose", "outcome", "evidence", "us", "best_us", "roof_us", "copy_gbps",
    "gemm_gflops", "against", "log_ratio", "low", "high", "utilisation", "kernel", "bits", "samples", "context",
)  # fmt: skip
# Values of one statement: SQLite takes 32,766.
AT_ONCE = 500

Row = Mapping[str, Any]


class Unusable(Exception):
    """An index that is damaged or of an earlier schema: it is made again of the files."""


class Index(ABC):
    """One connection."""

    @abstractmethod
    def rows(self, statement: str, values: Sequence[object] = ()) -> Iterator[Row]:
        """What a SELECT finds."""

    @abstractmethod
    def enter(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
        """Insert those of the rows that are not there yet: how many."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[object]:
        """All or nothing of what is entered inside."""

    def checked(self) -> None:
        """Raise Unusable for an earlier schema, ValueError for a later one: that was made by a newer tool."""
        for row in self.rows("SELECT schema FROM about"):
            if row["schema"] > SCHEMA:
                raise ValueError(f"the index has schema {row['schema']}, later than {SCHEMA}; use a newer m2check")
            if row["schema"] < SCHEMA:
                raise Unusable(f"the index has schema {row['schema']}, before {SCHEMA}")


class Database(ABC):
    """Where an index lives. Whoever writes is alone; whoever is killed has changed nothing, or all of a file."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Index]:
        """The index to enter into, made where there is none. Raises Unusable."""

    @abstractmethod
    def anew(self) -> AbstractContextManager[Index]:
        """An empty index, which takes the place of the one before when all is entered."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Index]:
        """The index to be read."""


class SqliteIndex(Index):
    """A connection to a file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.row_factory = sqlite3.Row

    def rows(self, statement: str, values: Sequence[object] = ()) -> Iterator[Row]:
        yield from self._connection.execute(statement, tuple(values))

    def enter(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
        before = self._connection.total_changes
        self._connection.executemany(
            f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks(len(columns))}) ON CONFLICT DO NOTHING", rows
        )
        return self._connection.total_changes - before

    def transaction(self) -> AbstractContextManager[object]:
        return self._connection


class Sqlite(Database):
    """A file beside those of the store. The store's own lock keeps writers apart."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writing(self) -> Iterator[Index]:
        try:
            with closing(self._opened(self.path)) as connection:
                index = SqliteIndex(connection)
                index.checked()
                yield index
        except sqlite3.DatabaseError as error:
            raise Unusable(str(error)) from error

    @contextmanager
    def anew(self) -> Iterator[Index]:
        made = self.path.with_name(f"{self.path.name}.new")
        for leftover in made.parent.glob(f"{made.name}*"):
            leftover.unlink()
        with closing(self._opened(made)) as connection:
            yield SqliteIndex(connection)
        for journal in (f"{self.path.name}-wal", f"{self.path.name}-shm"):
            with suppress(FileNotFoundError):
                self.path.with_name(journal).unlink()
        made.replace(self.path)

    @contextmanager
    def reading(self) -> Iterator[Index]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            yield SqliteIndex(connection)

    @staticmethod
    def _opened(path: Path) -> sqlite3.Connection:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        connection = sqlite3.connect(path, timeout=60)
        connection.execute("PRAGMA journal_mode=WAL")
        # What a power cut takes from the index, the files give back.
        connection.execute("PRAGMA synchronous=NORMAL")
        if is_new:
            words = {"number": "INTEGER PRIMARY KEY", "bytes": "BLOB", "text": "TEXT", "ordered": "WITHOUT ROWID"}
            connection.executescript(f"BEGIN;{TABLES.format(**words)}INSERT INTO about VALUES ({SCHEMA});COMMIT;")
        return connection


def marks(count: int) -> str:
    """So many places for values."""
    return ",".join("?" * count)


def insert(index: Index, name: str, records: Iterable[Record]) -> int:
    """Enter one file: how many of its records no file before had."""
    rows = [_parts(record) for record in records]
    with index.transaction():
        series = _numbers(index, "series", SERIES, {part[0][0]: part[0] for part in rows})
        contexts = _numbers(index, "contexts", CONTEXTS, {part[1][0]: part[1] for part in rows})
        # A file may hold a line twice.
        points = {p[0]: (p[0], series[s[0]], *p[1:], contexts[c[0]]) for s, c, p in rows}
        new = index.enter("points", POINTS, list(points.values()))
        index.enter("files", ("name", "records"), [(name, len(rows))])
    return new


def _numbers(
    index: Index, table: str, columns: Sequence[str], wanted: Mapping[bytes, tuple[Any, ...]]
) -> dict[bytes, int]:
    """Numbers of the rows of a table by their digest; rows are made where there are none."""
    known = _known(index, table, list(wanted))
    missing = [row for digest, row in wanted.items() if digest not in known]
    if missing:
        index.enter(table, columns, missing)
        known |= _known(index, table, [row[0] for row in missing])
    return known


def _known(index: Index, table: str, digests: Sequence[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for start in range(0, len(digests), AT_ONCE):
        some = digests[start : start + AT_ONCE]
        rows = index.rows(f"SELECT digest, id FROM {table} WHERE digest IN ({marks(len(some))})", some)
        found |= {bytes(row["digest"]): row["id"] for row in rows}
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _parts(record: Record) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """A record as rows of ``SERIES``, ``CONTEXTS``, and ``POINTS`` without the numbers of the two."""
    timing, canary, paired = record.timing, record.canary, record.paired
    name = series_of(record)
    series = (
        _digest(name.key),
        name.key,
        *(getattr(name, field) for field in SERIES[2:11]),
        json.dumps(record.case, sort_keys=True),
        None if timing is None else timing.bytes,
        None if timing is None else timing.flops,
    )
    about = {**record.machine, **{key: value for key, value in record.code.items() if key != "kernel"}}
    context = json.dumps(about, sort_keys=True)
    point = (
        _digest(record.json),
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
        record.bits,
        json.dumps(timing.samples_us) if timing and timing.samples_us else "",
    )
    return series, (_digest(context), context), point
