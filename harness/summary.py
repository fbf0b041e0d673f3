"""Fold the records of a run into one line a cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from minimax_m2.harness.matrix import Cell
from minimax_m2.harness.record import Record, Timing
from minimax_m2.harness.verdict import Outcome

SLOW_BELOW = 0.25


@dataclass(slots=True)
class Line:
    """What a run says of one cell."""

    cell: Cell
    records: list[Record] = field(default_factory=list)

    @property
    def failed(self) -> list[Record]:
        return [r for r in self.records if r.outcome not in (Outcome.PASS.value, Outcome.UNSUPPORTED.value)]

    @property
    def judged(self) -> list[Record]:
        """Records of judged cases; a verdict on the whole cell is none."""
        return [r for r in self.records if r.case and r.outcome != Outcome.UNSUPPORTED.value]

    @property
    def determinism(self) -> str:
        """The cell's card, where one was asked for."""
        return next((r.determinism for r in self.records if r.determinism), "")

    @property
    def verdict(self) -> str:
        """The worst outcome; ``not measured`` where every case was unsupported."""
        if self.failed:
            return self.failed[0].outcome
        return Outcome.PASS.value if self.judged else "not measured"

    @property
    def worst(self) -> float | None:
        return max((r.utilisation for r in self.judged if r.utilisation is not None), default=None)

    @property
    def mean(self) -> float | None:
        found = [r.utilisation for r in self.judged if r.utilisation is not None]
        return sum(found) / len(found) if found else None

    def timing(self, shape: str) -> Timing | None:
        return next((r.timing for r in self.records if r.timing and r.timing.shape == shape), None)

    @property
    def is_slow(self) -> bool:
        """Below a quarter of the measured roof at prefill."""
        prefill = self.timing("prefill")
        return prefill is not None and prefill.share < SLOW_BELOW


def lines(records: Iterable[Record]) -> list[Line]:
    """One line a cell, in the order of the run."""
    found: dict[Cell, Line] = {}
    for record in records:
        cell = Cell(record.op, record.provider, record.device, record.variant)
        found.setdefault(cell, Line(cell)).records.append(record)
    return list(found.values())
