"""Levels that tests show of a kernel without its device, as records: one line of JSON an op and level.

``pytest suites/npu --levels runs/levels.jsonl`` writes them; ``m2check dash build --levels`` shows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from minimax_m2.harness.provenance import commit, machine
from minimax_m2.harness.run import run_name

KIND = "level"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRecord:
    """Whether every test of an op at a level passed."""

    run: str
    device: str
    level: str
    op: str
    passed: bool
    host: str
    commit: str
    kind: str = KIND

    @property
    def json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def level_records(reports: Mapping[str, Mapping[str, bool]], devices: Mapping[str, str]) -> list[LevelRecord]:
    """What one session showed: by level, each op and whether it passed. ``devices`` says whose a level is."""
    run, about = run_name(), machine()
    return [
        LevelRecord(
            run=run, device=devices[level], level=level, op=op, passed=passed, host=str(about["host"]), commit=commit()
        )
        for level, ops in sorted(reports.items())
        if level in devices
        for op, passed in sorted(ops.items())
    ]


def read_levels(paths: Iterable[Path]) -> list[LevelRecord]:
    """The newest record of each op and level. Raises ValueError, with file and line, for a line that is none."""
    newest: dict[tuple[str, str], LevelRecord] = {}
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = _read(line, f"{path}, line {number}")
            place = found.level, found.op
            if place not in newest or newest[place].run <= found.run:
                newest[place] = found
    return [newest[place] for place in sorted(newest)]


def _read(line: str, where: str) -> LevelRecord:
    known = {field.name: field.type for field in fields(LevelRecord)}
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(found, dict) or set(found) != set(known) or found["kind"] != KIND:
        raise ValueError(f"{where} is no record of a level; pytest suites/npu --levels FILE writes them")
    if not isinstance(found["passed"], bool) or not all(isinstance(v, str) for k, v in found.items() if k != "passed"):
        raise ValueError(f"{where}: a field is of the wrong type")
    return LevelRecord(**found)
