"""Where records of many nights are kept: files that are only ever added, and an index made of them.

    runs/2026-11-22/<host>/<run>-<digest>.jsonl.gz   the truth: one file a run, never changed, mergeable by rsync
    quarantine/<name>                                what was no whole file of records, with its reason beside it
    index.sqlite                                     made of the first by ``rebuild``; losing it loses nothing.
                                                     With a URL it is a database of PostgreSQL instead

A file appears whole or not at all: it is written beside its place and then linked there. The index takes each file in
one transaction. So whoever is killed at any time loses nothing, and two who write at once do not meet.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minimax_m2.harness.history.files import Content, Unreadable, read_file
from minimax_m2.harness.history.index import Database, Index, Sqlite, Unusable, insert
from minimax_m2.harness.record import Record

UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class Added:
    """What became of one file: where it is kept and how many of its records are new, or why it is in quarantine."""

    path: Path
    kept: Path | None = None
    records: int = 0
    new: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    fault: str = ""

    def __str__(self) -> str:
        if self.fault:
            return f"{self.path}: quarantined, {self.fault}"
        others = "".join(f", {count} lines of kind {kind} left out" for kind, count in self.left_out.items())
        return f"{self.path}: {self.records} records, {self.new} new{others}"


class Store:
    """A folder of history. ``index`` is the URL of a database for its index, else a file in the folder serves.

    Raises ValueError for an index that is no URL of PostgreSQL.
    """

    def __init__(self, root: Path, *, index: str = "") -> None:
        self.root = root
        self.runs, self.quarantine = root / "runs", root / "quarantine"
        self.index = root / "index.sqlite"
        self._database = self._at(index) if index else Sqlite(self.index)

    @staticmethod
    def _at(url: str) -> Database:
        from minimax_m2.harness.history.postgres import Postgres

        return Postgres(url)

    def add(self, files: Sequence[Path]) -> list[Added]:
        """Merge files of records from anywhere. One that is bad or cut short is copied to quarantine, with the reason.

        Raises FileNotFoundError for a file that is not there.
        """
        for path in files:
            if not path.is_file():
                raise FileNotFoundError(f"file {str(path)!r} does not exist")
        return [self._add(path) for path in files]

    def _add(self, path: Path) -> Added:
        try:
            content = read_file(path)
        except Unreadable as error:
            self._set_aside(path, str(error))
            return Added(path, fault=str(error))
        if not content.records:
            return Added(path, left_out=content.left_out)
        kept, new = self.keep(content)
        return Added(path, kept, len(content.records), new, content.left_out)

    def keep(self, content: Content) -> tuple[Path, int]:
        """Write records as a file of the truth and index them: its path, and how many were not there before."""
        text = "".join(f"{record.json}\n" for record in content.records)
        packed = gzip.compress(text.encode(), mtime=0)
        first = min(content.records, key=lambda record: record.run)
        place = self.runs / f"{first.run[:4]}-{first.run[4:6]}-{first.run[6:8]}" / _safe(first)
        kept = place / f"{first.run}-{hashlib.sha256(packed).hexdigest()[:10]}.jsonl.gz"
        _write_whole(kept, packed)
        return kept, self.sync()

    def _set_aside(self, path: Path, reason: str) -> None:
        self.quarantine.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:10]
        place = self.quarantine / f"{digest}-{path.name}"
        shutil.copyfile(path, place)
        place.with_name(f"{place.name}.reason").write_text(f"{path}: {reason}\n")

    @contextmanager
    def entering(self) -> Iterator[Index]:
        """The index, to be written to by nobody else meanwhile. Raises Unusable for a damaged or older one."""
        with self._locked(), self._database.writing() as index:
            yield index

    def sync(self) -> int:
        """Index what is not yet indexed: how many records are new. A damaged or older index is made again."""
        try:
            with self.entering() as index:
                return self._entered(index)
        except Unusable:
            return self.rebuild()

    def rebuild(self) -> int:
        """Make the index again of all files: how many records it holds."""
        with self._locked(), self._database.anew() as index:
            return self._entered(index)

    @contextmanager
    def connect(self) -> Iterator[Index]:
        """The index, to be read."""
        self.sync()
        with self._database.reading() as index:
            yield index

    def _entered(self, index: Index) -> int:
        known = {row["name"] for row in index.rows("SELECT name FROM files")}
        count = 0
        for file in sorted(self.runs.glob("*/*/*.jsonl.gz")):
            name = file.relative_to(self.runs).as_posix()
            if name in known:
                continue
            try:
                records = read_file(file).records
            except Unreadable as error:
                # A disk may have damaged what was whole; the other files are still good.
                self._set_aside(file, str(error))
                file.rename(file.with_suffix(".damaged"))
                continue
            count += insert(index, name, records)
        return count

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of the index at a time; whoever is killed lets go."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _safe(record: Record) -> str:
    """The name of a record's machine as a folder's."""
    return UNSAFE.sub("_", str(record.machine.get("host") or "unknown"))[:60].strip(".") or "unknown"


def _write_whole(path: Path, content: bytes) -> None:
    """Put a file into its place whole; one of the same name holds the same, as its name is its content's."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as part:
        part.write(content)
        part.flush()
        os.fsync(part.fileno())
    Path(part.name).chmod(0o644)
    Path(part.name).replace(path)
