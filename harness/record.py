"""A record: one line of JSON that says what one case did on one provider and device, error and time."""

from __future__ import annotations

import fcntl
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from minimax_m2.harness.case import Case
from minimax_m2.harness.provenance import code, machine
from minimax_m2.harness.roofline import Roof
from minimax_m2.harness.verdict import Outcome, Verdict

SCHEMA = 4
# Schema 1 had records of cases only, without their kind; 2 knew neither sources nor what a time was taken beside; 3
# knew neither the outputs' bits nor raw times.
READABLE = (1, 2, 3, SCHEMA)
# Raw times that a record keeps.
SAMPLES = 12
# Characters of what is no record that a message quotes.
QUOTED = 60
# Who writes records. What was measured again because a night looked suspicious is told apart.
PURPOSES = ("run", "bench", "compare", "pytest", "nightly", "rerun")
Reporter = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Time of one call. ``share`` is the roofline time over ours; ``call`` the function that was faster.

    clock       how the time was taken: two clocks never share a series
    samples_us  up to ``SAMPLES`` raw times in the order they were taken in, evenly spread over all
    """

    shape: str
    call: str
    median_us: float
    best_us: float
    calls: int
    bytes: int
    flops: int
    roof_us: float
    clock: str = "loop"
    samples_us: tuple[float, ...] = ()

    @property
    def share(self) -> float:
        return self.roof_us / self.median_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """How fast the machine itself was: a copy from memory, a square float32 product."""

    copy_gbps: float
    gemm_gflops: float

    @classmethod
    def of(cls, roof: Roof) -> Canary:
        return cls(copy_gbps=roof.bandwidth[max(roof.bandwidth)] / 1e9, gemm_gflops=roof.flops["float32"] / 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Ours beside ``against`` in interleaved blocks: log of our time over its, with its 95 % confidence interval."""

    against: str
    log_ratio: float
    low: float
    high: float
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One result. ``utilisation`` and ``mean_z2`` are None where nothing was compared or the figure is not finite.

    A verdict on a whole cell (no case of its run let a corruption apply) has no case: {} and the id "".
    ``determinism`` is the cell's card (``D0+ D1+ D2- D5?``, see ``determinism.py``) on the case that it was asked with,
    and empty elsewhere.

    bits     hash of the outputs' bits, empty where they were not compared
    purpose  who wrote it, of ``PURPOSES``
    code     commit's date and height, hashes of the kernel's and the method's sources (``provenance.py``)
    canary   the machine's own speed meanwhile; ``paired`` the time beside another build's: None where not measured
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
    bits: str = ""
    purpose: str = "run"
    code: dict[str, str | int] = field(default_factory=dict)
    canary: Canary | None = None
    paired: Pair | None = None
    schema: int = SCHEMA

    @classmethod
    def of(
        cls,
        verdict: Verdict,
        *,
        run: str,
        timing: Timing | None = None,
        purpose: str = "run",
        canary: Canary | None = None,
        paired: Pair | None = None,
    ) -> Record:
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
            bits=verdict.bits,
            purpose=purpose,
            code=code(verdict.op, verdict.provider, verdict.device),
            canary=canary,
            paired=paired,
        )

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Read a line back. Raises ValueError naming what is not a record of this schema."""
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"record {_begun(line)} is not JSON: {error}") from error
        if not isinstance(found, dict) or found.get("schema") not in READABLE:
            raise ValueError(f"record {_begun(line)} is of no schema that can be read: {READABLE}")
        found = upgraded(found)
        known = {f.name for f in fields(cls)}
        if set(found) != known:
            raise ValueError(f"record {_begun(line)} lacks or adds fields: {sorted(set(found) ^ known)}")
        what = f"record of case {_begun(found['case_id'])}"
        record = cls(
            **found
            | {
                "timing": _part(Timing, found["timing"], f"{what}: timing"),
                "canary": _part(Canary, found["canary"], f"{what}: canary"),
                "paired": _part(Pair, found["paired"], f"{what}: paired"),
            }
        )
        if fault := record.fault():
            raise ValueError(f"record of case {_begun(record.case_id)}: {fault}")
        return record

    def fault(self) -> str:
        """What makes these values no record, empty where nothing does: a line of JSON may hold anything."""
        words = ("run", "op", "case_id", "provider", "device", "variant", "kind", "determinism", "bits")
        wrong = [name for name in words if not isinstance(getattr(self, name), str)]
        wrong += [name for name in ("case", "machine", "code") if not _is_flat(getattr(self, name))]
        if wrong:
            return f"{wrong[0]}={getattr(self, wrong[0])!r} is of the wrong type"
        if self.outcome not in {o.value for o in Outcome}:
            return f"it has the unknown outcome {self.outcome!r}"
        if self.purpose not in PURPOSES:
            return f"purpose={self.purpose!r} is none of {', '.join(PURPOSES)}"
        if not isinstance(self.evidence, list) or not all(isinstance(text, str) for text in self.evidence):
            return f"evidence={self.evidence!r} is no list of sentences"
        for name in ("utilisation", "mean_z2"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value >= 0):
                return f"{name}={value!r} is no share of a budget"
        return ""

    @property
    def json(self) -> str:
        # By hand: asdict copies every value, which is half of what a night's records take to be written.
        parts = {name: None if part is None else _fields(part) for name, part in self._parts()}
        return json.dumps(_fields(self) | parts, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def _parts(self) -> tuple[tuple[str, Timing | Canary | Pair | None], ...]:
        return ("timing", self.timing), ("canary", self.canary), ("paired", self.paired)

    @property
    def passed(self) -> bool:
        return self.outcome == Outcome.PASS.value


Part = TypeVar("Part", Timing, Canary, Pair)


def _fields(one: Record | Timing | Canary | Pair) -> dict[str, Any]:
    """The fields of one level."""
    return {name: getattr(one, name) for name in one.__slots__}


def upgraded(found: dict[str, Any]) -> dict[str, Any]:
    """A record of an earlier schema with what later ones added; what was not written down stays unknown."""
    new: dict[str, Any] = {
        "purpose": "run", "code": {}, "canary": None, "paired": None, "determinism": "", "bits": "",
    }  # fmt: skip
    return new | {"kind": "op"} | found | {"schema": SCHEMA} if found["schema"] < SCHEMA else found


def _part(kind: type[Part], found: Any, what: str) -> Part | None:
    """A part of a record from JSON, if it has it: numbers are finite, times positive."""
    if found is None:
        return None
    known = {f.name: f for f in fields(kind)}
    if not isinstance(found, dict) or not set(found) <= set(known):
        raise ValueError(f"{what} is {_begun(found)}; it has {', '.join(known)}")
    samples = found.get("samples_us", ())
    if not isinstance(samples, list | tuple) or len(samples) > SAMPLES or not all(map(_is_time, samples)):
        raise ValueError(f"{what}.samples_us={_begun(samples)} is no list of up to {SAMPLES} times")
    for name, value in found.items():
        if name == "samples_us":
            continue
        if "str" in str(known[name].type) and not isinstance(value, str):
            raise ValueError(f"{what}.{name}={value!r} is no text")
        if "str" not in str(known[name].type) and not _is_number(value):
            raise ValueError(f"{what}.{name}={value!r} is no finite number")
        if name.endswith(("_us", "_gbps", "_gflops")) and not float(value) > 0:
            raise ValueError(f"{what}.{name}={value!r} is no time or speed; it must be above 0")
    given: dict[str, Any] = {name: tuple(value) if name == "samples_us" else value for name, value in found.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error


def _begun(found: object) -> str:
    """The beginning of what is no record, for a message."""
    return repr(str(found)[:QUOTED])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_time(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_flat(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str | int) and not isinstance(v, bool) for v in value.values())


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
                report(f"{path}, line {number}: half-written, left out: {_begun(line)}")
                return
            raise ValueError(f"{path}, line {number}: {_begun(line)} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {number}: {_begun(line)} is no record")
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
