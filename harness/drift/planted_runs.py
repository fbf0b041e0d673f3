"""Planted faults at MiniMax-M2's widths: each kind in both layers of a toy, ranked among right steps.

    python -m minimax_m2.harness.drift.planted_runs suites/drift/faults ci/results/drift-planted-DATE.jsonl

writes a line a fault and layer. Every place without the fault is a right candidate's, judged once.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import Fault, planted, read_faults
from minimax_m2.harness.drift.lockstep import Cell, ranked
from minimax_m2.harness.drift.subjects import toy_subject
from minimax_m2.harness.drift.trajectory import Trajectory
from minimax_m2.harness.providers.plain import plain


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedRun:
    """One fault in one layer: whether it was ranked first, whether it was flagged there, and the first one's share.

    The share of its budget is None where nothing was returned that has one.
    """

    fault: str
    layer: int
    held_out: bool
    first: bool
    wrong: bool
    used: float | None


def planted_run(
    trajectory: Trajectory, clean: Candidate, right: Sequence[Cell], layer: int, fault: Fault
) -> PlantedRun:
    """Rank the cells of a fault's place among those that are ``right``."""
    place = (layer, fault.step)
    own = trajectory.cells(planted(clean, (layer, fault)), trajectory.at(place))
    top = ranked([*own, *(cell for cell in right if cell.place != place)])[0]
    first = top.place == place
    return PlantedRun(
        fault=fault.name, layer=layer, held_out=fault.held_out, first=first, wrong=first and top.is_wrong,
        used=top.used if math.isfinite(top.used) else None,
    )  # fmt: skip


def wide_runs(faults: Sequence[Fault]) -> Iterator[PlantedRun]:
    """Every kind of fault in both layers of the toy. Raises ValueError where a right step is flagged."""
    clean = Candidate(provider=plain())
    trajectory = Trajectory(toy_subject(), offered=clean.offered())
    right = list(trajectory.cells(clean))
    if wrong := [cell for cell in right if cell.is_wrong]:
        raise ValueError(f"layer {wrong[0].layer}, {wrong[0].step} is flagged without a fault")
    for fault in faults:
        for layer in (0, 1):
            yield planted_run(trajectory, clean, right, layer, fault)


def read(path: Path) -> list[PlantedRun]:
    """The runs of a record."""
    return [PlantedRun(**json.loads(line)) for line in path.read_text().splitlines()]


def main(folder: Path, path: Path) -> None:
    """Write the record, line by line."""
    with path.open("w") as record:
        for run in wide_runs(read_faults(folder)):
            record.write(json.dumps(asdict(run)) + "\n")
            record.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
