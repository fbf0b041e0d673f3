"""A store keeps every whole file, refuses every other with its reason, and loses nothing to whoever is killed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from minimax_m2.harness.history.store import Store
from minimax_m2.harness.record import Record

ROOT = Path(__file__).resolve().parents[2]


def written(path: Path, *records: Record) -> Path:
    path.write_text("".join(f"{record.json}\n" for record in records))
    return path


def points(store: Store) -> int:
    with store.connect() as index:
        (row,) = index.rows("SELECT count(*) AS n FROM points")
    return int(row["n"])


def nights(record: Record, count: int) -> list[Record]:
    return [replace(record, run=f"202601{day:02}T000000.000000Z") for day in range(1, count + 1)]


def test_files_of_other_machines_are_merged_once(record: Record, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first, second = nights(record, 2)
    (added,) = store.add([written(tmp_path / "a.jsonl", first, second)])
    assert (added.records, added.new) == (2, 2)
    (again,) = store.add([written(tmp_path / "b.jsonl", second, first)])
    assert (again.records, again.new) == (2, 0)
    assert points(store) == 2


def test_a_kept_file_reads_back_as_it_was_written(record: Record, tmp_path: Path) -> None:
    (added,) = Store(tmp_path).add([written(tmp_path / "a.jsonl", record)])
    assert added.kept is not None
    assert added.kept.parent == tmp_path / "runs" / "2026-01-01" / "cpu-a"
    assert Record.from_json(gzip.decompress(added.kept.read_bytes()).decode()) == record


def damaged(record: Record) -> dict[str, bytes]:
    """Files that are none, by what is wrong with them."""
    line = f"{record.json}\n".encode()
    bare = json.loads(record.json)
    return {
        "cut short.jsonl": line + line[:-20],
        "cut short.jsonl.gz": gzip.compress(line * 50)[:-30],
        "no gzip.jsonl.gz": line,
        "no json.jsonl": line + b"{]\n" + line,
        "no record.jsonl": b'{"speed": 3}\n',
        "no text.jsonl": b"\xff\xfe" + line,
        "empty.jsonl": b"",
        "later schema.jsonl": json.dumps(bare | {"schema": 99}).encode() + b"\n",
        "negative time.jsonl": json.dumps(bare | {"timing": bare["timing"] | {"median_us": -1}}).encode() + b"\n",
        "infinite time.jsonl": json.dumps(bare | {"timing": bare["timing"] | {"median_us": 1e999}}).encode() + b"\n",
        "no night.jsonl": json.dumps(bare | {"run": "repro"}).encode() + b"\n",
        "a list for a name.jsonl": json.dumps(bare | {"op": ["routing"]}).encode() + b"\n",
        "no character.jsonl": json.dumps(bare | {"provider": "a\ud800"}).encode() + b"\n",
        "a zero byte.jsonl": json.dumps(bare | {"variant": "a\0b"}).encode() + b"\n",
        "64 bits.jsonl": json.dumps(bare | {"timing": bare["timing"] | {"flops": 2**63}}).encode() + b"\n",
        "no threads.jsonl": json.dumps(bare | {"machine": bare["machine"] | {"threads": "many"}}).encode() + b"\n",
    }


@pytest.mark.parametrize("name", [
    "cut short.jsonl", "cut short.jsonl.gz", "no gzip.jsonl.gz", "no json.jsonl", "no record.jsonl", "no text.jsonl",
    "empty.jsonl", "later schema.jsonl", "negative time.jsonl", "infinite time.jsonl", "no night.jsonl",
    "a list for a name.jsonl", "no character.jsonl", "a zero byte.jsonl", "64 bits.jsonl", "no threads.jsonl",
])  # fmt: skip
def test_a_bad_file_is_quarantined_with_its_reason_and_never_half_read(
    record: Record, tmp_path: Path, name: str
) -> None:
    store, bad = Store(tmp_path / "store"), tmp_path / name
    bad.write_bytes(damaged(record)[name])
    good = written(tmp_path / "good.jsonl", record)
    refused, added = store.add([bad, good])
    assert refused.fault
    assert refused.kept is None
    assert "quarantined" in str(refused)
    (reason,) = store.quarantine.glob("*.reason")
    assert refused.fault in reason.read_text()
    assert added.new == 1
    assert points(store) == 1


def test_a_file_that_is_not_there_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        Store(tmp_path).add([tmp_path / "nowhere.jsonl"])


def test_the_index_is_made_again_of_the_files(record: Record, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add([written(tmp_path / "a.jsonl", *nights(record, 9))])
    store.index.write_bytes(b"no database at all, and longer than its header of a hundred bytes" * 3)
    assert points(store) == 9
    store.index.unlink()
    assert store.rebuild() == 9


def test_a_file_that_the_disk_damaged_is_set_aside_and_the_others_stay(record: Record, tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = (store.add([written(tmp_path / "a.jsonl", r)])[0].kept for r in nights(record, 2))
    assert one is not None
    one.write_bytes(one.read_bytes()[:40])
    assert store.rebuild() == 1
    assert list(store.quarantine.glob("*.reason"))
    assert two is not None
    assert two.exists()


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from minimax_m2.harness.history.files import Content
from minimax_m2.harness.history.store import Store
from minimax_m2.harness.record import Record
store, record = Store(Path(sys.argv[1])), Record.from_json(Path(sys.argv[2]).read_text())
print("ready", flush=True)
for n in range(int(sys.argv[4])):
    run = f"2026{int(sys.argv[3]):02}01T00{n // 60:02}{n % 60:02}.000000Z"
    store.keep(Content([replace(record, run=run)], {}))
    print(run, flush=True)
"""


def writer(store: Path, record: Path, month: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(store), str(record), str(month), str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "ci" / "typing")}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def test_two_writers_at_once_lose_nothing(record: Record, tmp_path: Path) -> None:
    line = written(tmp_path / "record.json", record)
    # Months keep their runs apart; 40 runs take a second, in which both write.
    writers = [writer(tmp_path / "store", line, month, 40) for month in (1, 2)]
    assert [w.wait(timeout=120) for w in writers] == [0, 0]
    store = Store(tmp_path / "store")
    assert points(store) == 80
    assert store.rebuild() == 80


def test_a_writer_killed_at_any_time_loses_nothing_that_he_said(record: Record, tmp_path: Path) -> None:
    line = written(tmp_path / "record.json", record)
    killed = writer(tmp_path / "store", line, 3, 3000)
    time.sleep(0.5)
    killed.send_signal(signal.SIGKILL)
    out, _ = killed.communicate()
    said = {run for run in out.splitlines() if run.endswith("Z")}
    store = Store(tmp_path / "store")
    assert said
    with store.connect() as index:
        kept = {row["run"] for row in index.rows("SELECT run FROM points")}
    # One more may have been whole before he could say so.
    assert said <= kept
    assert len(kept) <= len(said) + 1
    assert store.rebuild() == len(kept)


def test_a_night_half_entered_when_its_writer_died_is_entered_whole(record: Record, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add([written(tmp_path / "a.jsonl", *nights(record, 3))])
    index = sqlite3.connect(store.index)
    index.execute("DELETE FROM points")
    index.execute("DELETE FROM files")
    index.commit()
    # Entered, and never committed: the connection ends as that of a killed process does.
    index.execute("INSERT INTO files VALUES ('half', 1)")
    index.close()
    assert points(store) == 3
