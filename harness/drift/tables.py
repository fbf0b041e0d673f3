"""A drift run as tables on a terminal."""

from __future__ import annotations

import math

from rich.table import Table

from minimax_m2.harness.drift.asking import is_recorded
from minimax_m2.harness.drift.lockstep import Cell
from minimax_m2.harness.drift.record import Drift
from minimax_m2.harness.drift.running import Found

SHOWN = 8


def number(share: float) -> str:
    """A share of a budget in few digits."""
    return "inf" if math.isinf(share) else f"{share:.3g}"


def ranking(drift: Drift) -> Table:
    """The places that use most of their budget, wrong ones all."""
    fed = "its engine's own input" if is_recorded(drift.asked.candidate) else "the reference's input"
    table = Table(title=f"lock-step: {drift.own} places, each on {fed}", title_justify="left")
    for name in ("layer", "step", "phase", "error / budget", "mean z2", "test", "found"):
        table.add_column(name, justify="right" if name in ("layer", "error / budget", "mean z2") else "left")
    for cell in drift.ranked[: max(SHOWN, len(drift.wrong))]:
        style = "red" if cell.is_wrong else ""
        z2 = "" if cell.mean_z2 is None else f"{cell.mean_z2:.3g}"
        found = cell.explanation or (cell.evidence[0] if cell.evidence else "")
        table.add_row(str(cell.layer), cell.step, cell.phase, number(cell.used), z2, cell.test, found, style=style)
    return table


def heat(drift: Drift) -> Table:
    """Error over budget, layer by step; ``-`` is no step of the candidate's."""
    table = Table(title="error / budget by layer and step", title_justify="left")
    table.add_column("layer", justify="right")
    for step in drift.columns:
        table.add_column(step, justify="right")
    worst: dict[tuple[int, str], Cell] = {}
    for cell in drift.cells:
        if cell.place not in worst or cell.used > worst[cell.place].used:
            worst[cell.place] = cell
    judged = {cell.place for cell in drift.ranked}
    for layer in sorted({cell.layer for cell in drift.cells}):
        row = [worst.get((layer, step)) for step in drift.columns]
        table.add_row(str(layer), *("" if c is None else _entry(c) if c.place in judged else "-" for c in row))
    return table


def _entry(cell: Cell) -> str:
    return f"[bold red]{number(cell.used)}[/]" if cell.is_wrong else number(cell.used)


def whole_runs(drift: Drift) -> Table:
    """Whole runs beside float64: what they stray, choose and say."""
    table = Table(title="whole runs beside float64", title_justify="left")
    names = ("experts", "error at the logits", "right models", "leaves their band at", "other experts", "of them tied")
    for name in (*names, "other tokens", "of them tied", "top-1", "KL, nats"):
        table.add_column(name, justify="left" if name == "experts" else "right")
    for run in drift.runs:
        table.add_row(
            run.mode, f"{run.curve[-1]:.2e}", f"{run.low[-1]:.1e}..{run.high[-1]:.1e}", place(run), str(len(run.flips)),
            str(sum(f.is_tie for f in run.flips)), str(len(run.odd)), str(sum(o.is_tie for o in run.odd)),
            f"{100 * run.agreement:.1f} %", f"{run.divergence:.1e}",
        )  # fmt: skip
    return table


def place(run: Found) -> str:
    """Where a curve leaves its band, in words."""
    if run.leaves is None:
        return "nowhere"
    return "the logits" if run.leaves == len(run.curve) - 1 else f"layer {run.leaves}"


def first_odd(run: Found) -> str:
    """The first token that the candidate decides otherwise, and why."""
    if not run.odd:
        return f"{run.mode}: every token is the reference's"
    one = run.odd[0]
    if one.gap < 0:
        told = "the reference says so too where it computes with the same experts"
        return f"{run.mode}: token {one.position} is {one.actual}, the reference's is {one.expected}: {told}"
    cause = "a tie within what right models stray" if one.is_tie else "more than right models stray"
    return (
        f"{run.mode}: token {one.position} is {one.actual}, the reference's is {one.expected}: "
        f"its logit is {one.gap:.3g} larger, {cause} ({one.room:.3g})"
    )
