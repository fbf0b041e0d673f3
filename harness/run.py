"""One run: every cell on its sampled cases, then its times, as records."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby, product
from pathlib import Path
from types import MappingProxyType

from minimax_m2.harness.allocator import keep_freed_memory
from minimax_m2.harness.case import Case
from minimax_m2.harness.determinism import card
from minimax_m2.harness.judge import judge
from minimax_m2.harness.matrix import Cell, cells
from minimax_m2.harness.op import Op, find_op
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.record import Canary, Log, Record
from minimax_m2.harness.roofline import Roof, measure_gpu
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.timing import time_case
from minimax_m2.harness.verdict import Outcome, Verdict

# A provider that takes one case in so many still gets its full count.
REFUSALS = 20

Progress = Callable[[str, float], None]


def run_name() -> str:
    """A name that sorts by time."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def new_log(folder: Path) -> tuple[str, Log]:
    """The name of a new run and its file; runs that start at once get files of their own."""
    folder.mkdir(exist_ok=True)
    while True:
        name = run_name()
        try:
            return name, Log(folder / f"{name}.jsonl", new=True)
        except FileExistsError:
            continue


def run(
    providers: Iterable[Provider],
    *,
    ops: Iterable[str] = (),
    chosen: Sequence[Cell] | None = None,
    count: int = 16,
    roof: Roof | None = None,
    name: str,
    failures: Mapping[str, Sequence[Case]] = MappingProxyType({}),
    progress: Progress = lambda text, share: None,
) -> Iterator[Record]:
    """Judge the ``chosen`` cells, else all, on the known ``failures`` of their op, then on ``count`` sampled cases.

    With a ``roof`` its decode and prefill shapes are timed, too.

    The cells of an op meet one case after the other, so its inputs are drawn once and its expectation is computed once
    for all that share a contract.
    """
    keep_freed_memory()
    known = {(p.name, p.device): p for p in providers}
    chosen = planned(known.values(), ops=ops) if chosen is None else chosen
    done = 0
    for op_name, group in groupby(chosen, key=lambda cell: cell.op):
        op, mine = find_op(op_name), [(cell, known[cell.provider, cell.device]) for cell in group]
        wrong, graded = set[Cell](), set[Cell]()
        passed: dict[Cell, list[Verdict]] = {}
        progress(op_name, done / len(chosen))
        for case, cell, provider in [*again(mine, failures.get(op_name, ())), *deal(op, mine, count)]:
            verdict, determinism = judge(case, provider, cell.variant), ""
            if verdict.passed:
                if cell not in graded and telling(case, verdict):
                    graded.add(cell)
                    elsewhere = [p for p in known.values() if p.name == cell.provider and p.device != cell.device]
                    determinism = card(case, provider, cell.variant, elsewhere)
                passed.setdefault(cell, []).append(verdict)
            elif verdict.outcome is not Outcome.UNSUPPORTED:
                wrong.add(cell)
            yield replace(Record.of(verdict, run=name), determinism=determinism)
        hollow = {cell: found for cell, found in passed.items() if cell not in wrong and untried(found)}
        wrong |= set(hollow)
        yield from (vacuous(cell, found, name) for cell, found in hollow.items())
        for shape, (cell, provider) in product(op.shapes, mine):
            if roof is not None and cell not in wrong:
                progress(f"{cell.id} {shape}", done / len(chosen))
                yield timed(op, shape, cell, provider, roof, name)
        done += len(mine)
    progress("done", 1.0)


def telling(case: Case, verdict: Verdict) -> bool:
    """Whether a case can have the card of determinism for all: it has rows, and every corruption shows.

    Where nothing is routed or stored, zeros have the same bits everywhere.
    """
    return case.get("T", 2) not in (0, 1) and case.get("B", 1) != 0 and verdict.due <= verdict.applied


def planned(providers: Iterable[Provider], *, ops: Iterable[str] = (), variants: Collection[str] = ()) -> list[Cell]:
    """The cells of a run, those of an op beside each other."""
    return [cell for cell in cells(providers, ops) if not variants or cell.variant in variants]


def untried(found: list[Verdict]) -> list[str]:
    """The kinds of corruption that were due in a cell's run and that none of its cases let apply."""
    due, applied = (frozenset[str]().union(*kinds) for kinds in zip(*((v.due, v.applied) for v in found), strict=True))
    return sorted(due - applied)


def vacuous(cell: Cell, found: list[Verdict], name: str) -> Record:
    """A verdict on a whole cell, of no case: it was never shown that its cases could have caught a wrong kernel."""
    told = f"no case of {len(found)} lets these corruptions apply: {', '.join(untried(found))}; judge more cases"
    verdict = replace(found[-1], outcome=Outcome.VACUOUS, evidence=(told,), comparisons=(), utilisation=math.nan)
    return replace(Record.of(verdict, run=name), case={}, case_id="")


def again(mine: list[tuple[Cell, Provider]], known: Sequence[Case]) -> Iterator[tuple[Case, Cell, Provider]]:
    """Every known failure with every cell: it says by itself what it refuses."""
    yield from ((case, cell, provider) for case in known for cell, provider in mine)


def deal(op: Op, mine: list[tuple[Cell, Provider]], count: int) -> Iterator[tuple[Case, Cell, Provider]]:
    """Every case with every cell that is to meet it, case by case."""
    wanted = {(provider.name, provider.device): judgeable(op, provider, count) for _, provider in mine}
    for case in dict.fromkeys(case for cases in wanted.values() for case in cases):
        for cell, provider in mine:
            if case in wanted[cell.provider, cell.device]:
                yield case, cell, provider


def judgeable(op: Op, provider: Provider, count: int) -> list[Case]:
    """The first ``count`` sampled cases that a provider does not refuse, or its refusals where it refuses all."""
    drawn = sampled(op, count)
    if all(provider.refuses(op, case) is None for case in drawn):
        return drawn
    kept = [case for case in sampled(op, REFUSALS * count) if provider.refuses(op, case) is None]
    return kept[:count] or drawn


def timed(op: Op, shape: str, cell: Cell, provider: Provider, roof: Roof, name: str) -> Record:
    """Judge a shape's case and, where it passes, time it."""
    case: Case = op.shape(shape)
    verdict = judge(case, provider, cell.variant)
    own = measure_gpu() if provider.device == "gpu" else roof
    timing = time_case(op, shape, provider, cell.variant, own) if verdict.passed else None
    return Record.of(verdict, run=name, timing=timing, canary=None if timing is None else Canary.of(own))
