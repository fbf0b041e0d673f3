"""PostgreSQL holds the index that SQLite holds: the same nights, no record lost or doubled, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimax_m2.harness.history.events import events_of
from minimax_m2.harness.history.files import Content
from minimax_m2.harness.history.index import SCHEMA
from minimax_m2.harness.history.load import NIGHT, loaded
from minimax_m2.harness.history.panel import POINTS_OF_SERIES, Panel, panels
from minimax_m2.harness.history.postgres import Postgres
from minimax_m2.harness.history.store import Store
from minimax_m2.harness.record import Pair, Record

ROOT = Path(__file__).resolve().parents[2]


def nights(record: Record, *, count: int, slower_from: int = 99) -> list[Record]:
    """Nights of three providers, one of them slower from a night on, with a re-run each and names that sort oddly."""
    assert record.timing is not None
    found = []
    for day in range(1, count + 1):
        for at, provider in enumerate(("ours", "Plain", "ähnlich")):
            slow = 1.3 if day >= slower_from and provider == "ours" else 1 + 0.002 * ((day * 7 + at) % 5)
            one = replace(
                record,
                run=f"202601{day:02}T0{at}0000.000000Z", provider=provider,
                timing=replace(record.timing, median_us=40 * slow),
                machine=record.machine | {"commit": f"{day:012x}"},
                code=record.code | {"kernel": "new" if slow == 1.3 else "old"},
                paired=Pair(against="ours@a", log_ratio=float(np.log(slow)), low=-0.01, high=0.01, blocks=12),
            )  # fmt: skip
            found += [one, replace(one, purpose="rerun", run=f"202601{day:02}T0{at}3000.000000Z")]
    return found


def read(store: Store) -> list[Panel]:
    with store.connect() as index:
        return list(panels(index))


def points(store: Store) -> int:
    with store.connect() as index:
        (row,) = index.rows("SELECT count(*) AS n FROM points")
    return int(row["n"])


def test_both_databases_tell_the_same_nights_and_events(record: Record, tmp_path: Path, database: str) -> None:
    file, other = Store(tmp_path / "file"), Store(tmp_path / "other", index=database)
    for store in (file, other):
        store.keep(Content(nights(record, count=30, slower_from=25), {}))
    (a,), (b,) = read(file), read(other)
    assert (a.series, a.nights, a.again) == (b.series, b.nights, b.again)
    assert [one.provider for one in b.series] == ["Plain", "ours", "ähnlich"]
    for name in ("us", "roof_us", "log_ratio", "share", "kernels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    told = [event.key(b) for event in events_of(b)]
    assert told == [event.key(a) for event in events_of(a)] != []


def test_what_is_there_is_not_entered_twice(record: Record, tmp_path: Path, database: str) -> None:
    store = Store(tmp_path, index=database)
    first = nights(record, count=2)
    assert store.keep(Content(first, {}))[1] == 12
    # Another file with some of the same records, one of them twice.
    assert store.keep(Content([*first[:3], first[0], *nights(record, count=3)[12:]], {}))[1] == 6
    assert points(store) == 18
    assert store.rebuild() == 18
    assert points(store) == 18


def test_an_index_of_an_earlier_schema_is_made_again_and_of_a_later_one_kept(
    record: Record, tmp_path: Path, database: str
) -> None:
    import psycopg

    store = Store(tmp_path, index=database)
    store.keep(Content(nights(record, count=2), {}))
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE about SET schema = %s", (SCHEMA - 1,))
        connection.execute("DELETE FROM points")
    assert points(store) == 12
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("UPDATE about SET schema = %s", (SCHEMA + 1,))
    with pytest.raises(ValueError, match="use a newer m2check"):
        points(store)


def test_a_reader_cannot_write(record: Record, tmp_path: Path, database: str) -> None:
    import psycopg

    store = Store(tmp_path, index=database)
    store.keep(Content(nights(record, count=1), {}))
    with store.connect() as index, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        index.enter("files", ("name", "records"), [("x", 1)])


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from minimax_m2.harness.history.files import Content
from minimax_m2.harness.history.store import Store
from minimax_m2.harness.record import Record
folder, url, text, month = sys.argv[1:]
store, record = Store(Path(folder), index=url), Record.from_json(Path(text).read_text())
print("ready", flush=True)
for n in range(400):
    run = f"2026{int(month):02}01T00{n // 60:02}{n % 60:02}.000000Z"
    store.keep(Content([replace(record, run=run)], {}))
    print(run, flush=True)
"""


def writer(folder: Path, url: str, record: Record, month: int) -> subprocess.Popen[str]:
    text = folder / "record.json"
    text.write_text(record.json)
    command = [sys.executable, "-c", WRITER, str(folder / f"host {month}"), url, str(text), str(month)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "ci" / "typing")}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def test_two_hosts_write_at_once_and_a_killed_one_has_written_whole_files(
    record: Record, tmp_path: Path, database: str
) -> None:
    hosts = [writer(tmp_path, database, record, month) for month in (1, 2)]
    time.sleep(1.5)
    said = []
    for host in hosts:
        host.send_signal(signal.SIGKILL)
        out, _ = host.communicate()
        said += [line for line in out.splitlines() if line.endswith("Z")]
    with Postgres(database).reading() as index:
        kept = [row["run"] for row in index.rows("SELECT run FROM points")]
        named = {row["name"][11:].rpartition("-")[0] for row in index.rows("SELECT name FROM files")}
    assert said
    assert len(kept) == len(set(kept)) == len(named)
    assert set(said) <= set(kept)
    # What one of them had on disk and not yet entered is entered by the next who looks.
    for month in (1, 2):
        Store(tmp_path / f"host {month}", index=database).sync()
    with Postgres(database).reading() as index:
        (row,) = index.rows("SELECT count(*) AS n FROM points")
    assert row["n"] == sum(1 for _ in tmp_path.glob("host */runs/*/*/*.jsonl.gz"))


@pytest.mark.parametrize(
    "url, told",
    [
        ("mysql://host/nights", "no URL of PostgreSQL"),
        ("postgresql:///nights?host=/nowhere&password=secret", "at /nowhere cannot be reached"),
        ("postgresql://me:secret@[::1/nights", "at its URL cannot be reached"),
    ],
)
def test_an_index_that_cannot_be_had_is_named_without_its_password(tmp_path: Path, url: str, told: str) -> None:
    pytest.importorskip("psycopg", reason="not here: the Python package psycopg")
    with pytest.raises(ValueError, match=told) as raised:
        Store(tmp_path, index=url).sync()
    assert "secret" not in str(raised.value)


def shows(database: str, statement: str) -> str:
    with Postgres(database).reading() as index:
        return "\n".join(str(row["QUERY PLAN"]) for row in index.rows(f"EXPLAIN {statement}"))


# Ten million take minutes; `python -m minimax_m2.harness.history.load` writes down what either takes.
@pytest.mark.parametrize("count", [200_000, pytest.param(10_000_000, marks=pytest.mark.nightly)])
@pytest.mark.timeout(3600)
def test_a_series_of_many_points_is_read_by_its_index_and_a_night_is_entered_whole(
    tmp_path: Path, database: str, count: int
) -> None:
    found = loaded(Store(tmp_path, index=database), points=count, kind="PostgreSQL")
    assert found.night_records == NIGHT
    told = shows(database, POINTS_OF_SERIES.replace("series = ?", "series = 7").replace("?", "''"))
    assert "points_of_series" in told
    assert "Seq Scan" not in told
    with Postgres(database).reading() as index:
        (row,) = index.rows("SELECT count(*) AS n FROM points")
    assert row["n"] == count + NIGHT


def test_what_is_not_here_is_said_and_where_ci_demands_it_a_failure(
    required: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTORY_REQUIRES", "ray,postgres")
    with pytest.raises(pytest.fail.Exception, match="HISTORY_REQUIRES demands postgres, but there is no server"):
        required("postgres", "there is no server")
    with pytest.raises(pytest.skip.Exception, match="not here: there is no browser"):
        required("chromium", "there is no browser")
