"""How far a night is, for whoever looks on: a small file beside its journal, replaced whole at every step.

The journal itself holds what was measured; ``seen`` reads both, and never waits for the one who writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minimax_m2.harness.record import Record

SUFFIX = ".progress.json"
# The newest cells that are shown, and how much of a journal's end holds them: a line has about 2 KiB.
SHOWN, END = 12, 1 << 16

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a night stands.

    told    what it is at, or what came of it
    share   of its plan, 0 to 1
    measured, ended  how much is in the store, when it is over
    """

    run: str
    against: str
    build: str
    budget: float
    told: str = ""
    share: float = 0.0
    planned: int = 0
    measured: int = 0
    ended: bool = False
    updated: str = ""


class Told:
    """The file of one night's standing."""

    def __init__(self, journal: Path, standing: Standing) -> None:
        self._path, self._standing = journal.with_suffix(SUFFIX), standing
        # Of what is over one is enough.
        for path in journal.parent.glob(f"*{SUFFIX}"):
            if path != self._path and _read(path).get("ended"):
                path.unlink(missing_ok=True)

    def write(self, **changes: Any) -> None:
        """Change some fields."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._standing = replace(self._standing, **changes | {"updated": now})
        part = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        part.write_text(json.dumps(asdict(self._standing)))
        part.replace(self._path)

    def beside(self, progress: Progress) -> Progress:
        """A progress that is told and written down."""

        def both(text: str, share: float) -> None:
            self.write(told=text, share=round(share, 4))
            progress(text, share)

        return both


def seen(root: Path) -> dict[str, Any] | None:
    """The newest night of a store that is under way or was the last: its standing, and the cells measured last."""
    found = [(path, standing) for path in root.glob(f"pending/*{SUFFIX}") if (standing := _read(path))]
    if not found:
        return None
    path, standing = max(found, key=lambda one: (not one[1].get("ended"), str(one[1].get("updated"))))
    # Nobody knows from here whether another host's process lives; how long it has been silent is told instead.
    silent = datetime.now(UTC) - datetime.fromisoformat(standing["updated"])
    cells, count = _cells(path.with_name(path.name.removesuffix(SUFFIX) + ".jsonl"))
    count = max(count, standing["measured"])
    return standing | {"silent_s": round(silent.total_seconds()), "measured": count, "cells": cells}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("updated"), str) else {}


def _cells(journal: Path) -> tuple[list[dict[str, Any]], int]:
    """The newest cells of a journal, the last first, and how many lines it has."""
    try:
        text = journal.read_bytes()
    except OSError:
        return [], 0
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole[-END:].splitlines()[-SHOWN:]
    found = []
    for line in reversed(lines):
        try:
            record = Record.from_json(line.decode())
        except ValueError:
            continue
        timing, paired = record.timing, record.paired
        found.append({
            "op": record.op, "provider": record.provider, "shape": timing.shape if timing else "",
            "outcome": record.outcome, "us": timing and timing.median_us, "ratio": paired and paired.log_ratio,
            "low": paired and paired.low, "high": paired and paired.high, "used": record.utilisation,
        })  # fmt: skip
    return found, whole.count(b"\n")
