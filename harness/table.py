"""Records as rich tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from minimax_m2.harness.coverage import Coverage
from minimax_m2.harness.devices import DEVICES, absence
from minimax_m2.harness.features import Finding, Standing
from minimax_m2.harness.models import ModelRecord
from minimax_m2.harness.record import Timing
from minimax_m2.harness.summary import Line

GOOD, BAD, QUIET = "green", "bold red", "dim"
STYLES = {Standing.PROVEN: GOOD, Standing.FAILING: BAD, Standing.NOT_HERE: QUIET, Standing.NOT_YET_BUILT: QUIET}


def run_table(lines: Sequence[Line]) -> Table:
    """One row a cell: verdict, cases, share of the error budget used, times, share of the measured roof, and under
    which changes every bit stays (``determinism.py``)."""
    table = Table(title="MiniMax-M2, op by op", title_justify="left")
    for name in ("op", "provider", "variant", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in ("cases", "budget", "mean", "decode us", "prefill us", "roof %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("same bits")
    has_notes = any(line.is_slow for line in lines)
    if has_notes:
        table.add_column("note")
    previous = ""
    for line in lines:
        if previous and line.cell.op != previous:
            table.add_section()
        decode, prefill = line.timing("decode"), line.timing("prefill")
        table.add_row(
            line.cell.op if line.cell.op != previous else "",
            line.cell.provider,
            line.cell.variant,
            f"[{GOOD if line.verdict == 'pass' else BAD}]{line.verdict}[/]",
            str(len(line.judged)),
            number(line.worst),
            number(line.mean),
            microseconds(decode),
            microseconds(prefill),
            "" if prefill is None else f"{100 * prefill.share:.0f}",
            line.determinism,
            *([f"[{QUIET}]slow[/]" if line.is_slow else ""] if has_notes else []),
        )
        previous = line.cell.op
    return table


def coverage_line(found: Sequence[Coverage]) -> str:
    """How many pairs of declared values the cases of a run held, and which op the fewest of its own."""
    met, declared = sum(c.met for c in found), sum(c.declared for c in found)
    if not declared:
        return "no op has two factors"
    least = min(found, key=lambda c: c.share)
    return (
        f"cases held {met} of {declared} pairs of declared values ({met / declared:.0%}), the fewest of {least.op} "
        f"({least.share:.0%}); the page of --report names pairs that never met"
    )


def model_table(rows: Iterable[ModelRecord]) -> Table:
    """One row a model: how it reads the held-out text."""
    table = Table(title="the model on tiny-m2, held-out text, teacher-forced", title_justify="left")
    table.add_column("provider", no_wrap=True)
    table.add_column("own steps", no_wrap=True)
    for name in ("cross-entropy", "top-1 agreement", "KL to the reference", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row.cells, style=None if row.score is not None else BAD)
    return table


def number(value: float | None) -> str:
    """A share of a budget: two places, or its order of magnitude where it is far beyond."""
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0e}"


def microseconds(timing: Timing | None) -> str:
    """Three significant digits, without an exponent."""
    if timing is None:
        return ""
    return f"{timing.median_us:.3g}" if timing.median_us < 1000 else f"{timing.median_us:.0f}"


def absent_devices() -> list[str]:
    """One sentence a device that could not be judged."""
    reasons = {device: absence(device) for device in DEVICES}
    return [f"{device}: not here ({reason})" for device, reason in reasons.items() if reason is not None]


def feature_table(findings: Iterable[Finding]) -> Table:
    """Fused path x device."""
    found = list(findings)
    devices = list(dict.fromkeys(f.device for f in found))
    table = Table(title="fused path x device", title_justify="left")
    table.add_column("path", no_wrap=True)
    for device in devices:
        table.add_column(device)
    for name in dict.fromkeys(f.feature for f in found):
        row = {f.device: f for f in found if f.feature == name}
        table.add_row(name, *(_standing(row[device]) for device in devices))
    return table


def _standing(finding: Finding) -> str:
    reason = f"\n[{QUIET}]{finding.reason}[/]" if finding.standing is Standing.FAILING else ""
    return f"[{STYLES[finding.standing]}]{finding.standing.value}[/]{reason}"
