"""One run: every cell on its sampled cases, then its times, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

from minimax_m2.harness.case import Case
from minimax_m2.harness.judge import judge
from minimax_m2.harness.matrix import Cell, cells
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.record import Record
from minimax_m2.harness.roofline import Roof
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.timing import time_case
from minimax_m2.harness.verdict import Outcome

# A provider that takes one case in so many still gets its full count.
REFUSALS = 20

Progress = Callable[[str, float], None]


def run_name() -> str:
    """A name that sorts by time."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def run(
    providers: Iterable[Provider],
    *,
    ops: Iterable[str] = (),
    variants: Iterable[str] = (),
    count: int = 16,
    roof: Roof | None = None,
    name: str | None = None,
    progress: Progress = lambda text, share: None,
) -> Iterator[Record]:
    """Judge every cell on ``count`` sampled cases of its op; with a ``roof`` also time its decode and prefill shapes.

    Cells of one op follow each other, so an expectation is computed once for all that share a contract.
    """
    known = {(p.name, p.device): p for p in providers}
    only = set(variants)
    chosen = [c for c in cells(known.values(), ops) if not only or c.variant in only]
    label = name or run_name()
    for position, cell in enumerate(chosen):
        progress(cell.id, position / len(chosen))
        provider, op = known[cell.provider, cell.device], find_op(cell.op)
        clean = True
        for case in judgeable(op, provider, count):
            record = Record.of(judge(case, provider, cell.variant), run=label)
            clean &= record.outcome in (Outcome.PASS.value, Outcome.UNSUPPORTED.value)
            yield record
        if roof is not None and clean:
            for shape in op.shapes:
                progress(f"{cell.id} {shape}", position / len(chosen))
                yield timed(op, shape, cell, provider, roof, label)
    progress("done", 1.0)


def judgeable(op: Op, provider: Provider, count: int) -> list[Case]:
    """The first ``count`` sampled cases that a provider does not refuse, or its refusals where it refuses all."""
    drawn = sampled(op, count)
    if all(provider.refuses(op, case) is None for case in drawn):
        return drawn
    kept = [case for case in sampled(op, REFUSALS * count) if provider.refuses(op, case) is None]
    return kept[:count] or drawn


def timed(op: Op, shape: str, cell: Cell, provider: Provider, roof: Roof, label: str) -> Record:
    """Judge a shape's case and, where it passes, time it."""
    case: Case = op.shape(shape)
    verdict = judge(case, provider, cell.variant)
    timing = time_case(op, shape, provider, cell.variant, roof) if verdict.passed else None
    return Record.of(verdict, run=label, timing=timing)
