"""A record: one line of JSON that says what one case did on one provider and device, error and time."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.verdict import Outcome, Verdict

SCHEMA = 2
# Schema 1 had records of cases only, without their kind.
READABLE = (1, SCHEMA)
Reporter = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Time of one call. ``share`` is the roofline time over ours; ``call`` the function that was faster."""

    shape: str
    call: str
    median_us: float
    best_us: float
    calls: int
    bytes: int
    flops: int
    roof_us: float

    @property
    def share(self) -> float:
        return self.roof_us / self.median_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One result. ``utilisation`` and ``mean_z2`` are None where nothing was compared or the figure is not finite.

    A verdict on a whole cell (no case of its run let a corruption apply) has no case: {} and the id "".
    ``determinism`` is the cell's card (``D0+ D1+ D2-``, see ``determinism.py``) on the case that it was asked with, and
    empty elsewhere.
    """

    run: str
    op: str
    case: dict[str, int | str]
    case_id: str
    provider: str
    device: str
    variant: str
    outcome: str
    utilisation: float | None
    mean_z2: float | None
    elements: int
    unspecified: int
    evidence: list[str]
    timing: Timing | None = None
    machine: dict[str, str | int] = field(default_factory=dict)
    kind: str = "op"
    determinism: str = ""
    schema: int = SCHEMA

    @classmethod
    def of(cls, verdict: Verdict, *, run: str, timing: Timing | None = None) -> Record:
        """Record a verdict."""
        z2 = [c.mean_z2 for c in verdict.comparisons if math.isfinite(c.mean_z2)]
        finite = math.isfinite(verdict.utilisation)
        return cls(
            run=run,
            op=verdict.op,
            case=dict(verdict.case),
            case_id=verdict.case.id,
            provider=verdict.provider,
            device=verdict.device,
            variant=verdict.variant,
            outcome=verdict.outcome.value,
            utilisation=verdict.utilisation if finite else None,
            mean_z2=max(z2) if z2 else None,
            elements=sum(c.elements for c in verdict.comparisons),
            unspecified=sum(c.unspecified for c in verdict.comparisons),
            evidence=list(verdict.evidence),
            timing=timing,
            machine=machine(),
        )

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Read a line back. Raises ValueError naming what is not a record of this schema."""
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"record {line[:60]!r} is not JSON: {error}") from error
        if not isinstance(found, dict) or found.get("schema") not in READABLE:
            raise ValueError(f"record {line[:60]!r} is of no schema that can be read: {READABLE}")
        if found["schema"] == 1:
            found["kind"] = "op"
        # The first records of schema 2 have no card.
        found.setdefault("determinism", "")
        known = {f.name for f in fields(cls)}
        if set(found) != known:
            raise ValueError(f"record {line[:60]!r} lacks or adds fields: {sorted(set(found) ^ known)}")
        if found["outcome"] not in {o.value for o in Outcome}:
            raise ValueError(f"record of case {found['case_id']} has the unknown outcome {found['outcome']!r}")
        timing = found.pop("timing")
        return cls(**found, timing=None if timing is None else Timing(**timing))

    @property
    def json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def passed(self) -> bool:
        return self.outcome == Outcome.PASS.value


class Log:
    """A file of records, one a line. Whoever is killed while he writes loses at most the line that he was at.

    A line is written by one call, so no reader meets half of one but as the last. Where the file ends in one that was
    left half-written, it is cut off and ``report`` is told.
    """

    def __init__(self, path: Path, *, new: bool = False, report: Reporter = warnings.warn) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | (os.O_EXCL if new else 0)
        self._file = os.open(path, flags, 0o666)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            whole = _end_of_last_line(self._file)
            if whole < (size := os.fstat(self._file).st_size):
                report(f"{path}: {size - whole} bytes of a half-written line are cut off")
                os.ftruncate(self._file, whole)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def append(self, line: str) -> None:
        """Write one line; OSError says why it could not be written."""
        written = os.write(self._file, f"{line}\n".encode())
        if written != len(line.encode()) + 1:
            raise OSError(f"{self.path}: wrote {written} bytes of a line; is the disk full?")

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


def _end_of_last_line(file: int) -> int:
    """Bytes of a file up to its last line break, and with it."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read(path: Path, *, report: Reporter = warnings.warn) -> list[Record]:
    """All records of cases in a ``.jsonl`` file; those of whole models are left to ``models.read_models``.

    ``report`` is told of a last line that a run left half-written. Raises ValueError, with file and line, for any
    other line that is no record.
    """
    return [_placed(path, line, found) for line, found in parsed(path, report) if found.get("kind", "op") == "op"]


def _placed(path: Path, line: int, found: dict[str, Any]) -> Record:
    try:
        return Record.from_json(json.dumps(found))
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from error


def parsed(path: Path, report: Reporter) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of each line; a last one without its line break that is no JSON is reported, not read."""
    text = path.read_text()
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line or "{}")
        except json.JSONDecodeError as error:
            if number == len(lines) and not text.endswith("\n"):
                report(f"{path}, line {number}: half-written, left out: {line[:40]!r}")
                return
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is no record")
        if found:
            yield number, found


def find_case(case_id: str, folder: Path, *, report: Reporter = warnings.warn) -> Case:
    """The case with this id in the recorded runs, newest first; KeyError says where it was looked for.

    A file that holds anything but records is reported and passed over.
    """
    for path in sorted(folder.glob("*.jsonl"), reverse=True):
        try:
            records = read(path, report=report)
        except ValueError as error:
            report(str(error))
            continue
        for record in records:
            if case_id and record.case_id == case_id:
                return Case(record.case)
    raise KeyError(f"no recorded case has id {case_id!r} in {folder}; pass the case's JSON instead")


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, accelerator where there is one, threads, software, commit."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    accelerator = {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return accelerator | {
        "processor": model,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """The checkout's commit, ``+`` where it was changed since, ``installed`` outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "installed"
    return found.stdout.strip()
