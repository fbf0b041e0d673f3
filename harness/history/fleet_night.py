"""A night that many machines measure: each times cells beside the accepted build, and one host keeps the journal.

The hands of one resource share a plan, so it must name one kind of chip: re-runs may go to another machine of it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from minimax_m2.harness.fleet import Fleet
from minimax_m2.harness.hands import Hand, Unit
from minimax_m2.harness.history.files import Content
from minimax_m2.harness.history.measuring import Night, Outcome, Planned, place, plan
from minimax_m2.harness.history.nightly import (
    Asked,
    Done,
    Progress,
    accepted_commit,
    journal_of,
    night_of,
    nothing_of,
    odd_places,
)
from minimax_m2.harness.history.store import Store
from minimax_m2.harness.history.under_way import Standing, Told
from minimax_m2.harness.provenance import commit
from minimax_m2.harness.record import Log, Record, read

LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class NightJob:
    """Cells to be timed beside the build ``against``; with ``again`` only these, a few times each."""

    label: str
    asked: Asked
    against: str
    again: Sequence[Unit] | None = None

    def hand(self, device: str) -> Hand:
        return NightHand(self)


class NightHand:
    """One machine of the night; it lives as long as the builds that it has in processes of their own."""

    def __init__(self, job: NightJob) -> None:
        self._job, self._stack = job, ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="m2check-")))
        self._night: Night = night_of(
            job.asked, job.label, job.against, self._folder / "builds", self._stack, lambda text, share: None
        )
        cells = plan(job.asked.ops, job.asked.providers, self._night.roof)
        self._cells: dict[Unit, Planned] = {place(cell): cell for cell in cells}

    def plan(self) -> list[tuple[Unit, float | None]]:
        wanted = self._cells if self._job.again is None else [unit for unit in self._job.again if unit in self._cells]
        return [(unit, self._cells[unit].weight) for unit in wanted]

    def do(self, unit: Unit) -> list[str]:
        cell, night = self._cells[unit], self._night
        if self._job.again is not None:
            return [record.json for record in night.again(cell, lambda text, share: None)]
        night.outcome = Outcome()
        path = self._folder / "cell.jsonl"
        path.unlink(missing_ok=True)
        with Log(path) as log:
            night.run([cell], log, until=lambda: False, progress=lambda text, share: None)
        found = [record.json for record in read(path)]
        return found or [json.dumps({"kind": LEFT_OUT, "throttled": night.outcome.throttled})]


def tonight_on(fleet: Fleet, store: Store, asked: Asked, progress: Progress) -> Done:
    """Measure a night into the store, on a fleet. Raises as ``tonight`` does, and as ``Fleet.spread``."""
    until = time.monotonic() + 60 * asked.budget
    against = accepted_commit(store, asked.against)
    label, path, is_resumed = journal_of(store, asked)
    told = Told(path, Standing(run=label, against=against, build=asked.build or commit(), budget=asked.budget))
    progress = told.beside(progress)
    outcome = Outcome()
    with Log(path) as log:
        known = {(r.op, r.timing.shape if r.timing else "", r.provider) for r in read(path)}

        def chosen(unit: Unit) -> bool:
            outcome.planned += 1
            return unit not in known

        job = NightJob(label=label, asked=asked, against=against)
        outcome.cells = len(known)
        for done in fleet.spread(job, chosen=chosen, until=lambda: time.monotonic() > until, progress=progress):
            told.write(planned=outcome.planned)
            left_out = [json.loads(line) for line in done.lines if json.loads(line).get("kind") == LEFT_OUT]
            outcome.cells += not left_out
            outcome.throttled += sum(one["throttled"] for one in left_out)
            outcome.refused += sum(not one["throttled"] for one in left_out)
            for line in done.lines if not left_out else ():
                log.append(line)
    records = read(path)
    if not records:
        path.unlink()
        nothing = nothing_of(outcome, asked.budget)
        told.write(told=nothing, ended=True)
        raise RuntimeError(nothing)
    kept = _kept(store, records)
    odd = sorted(odd_places(store, label))
    if odd:
        again = NightJob(label=label, asked=asked, against=against, again=odd)
        looked = [Record.from_json(line) for done in fleet.spread(again, progress=progress) for line in done.lines]
        _kept(store, looked)
    path.unlink()
    told.write(told=f"{outcome.cells} cells are in the store", measured=len(records), ended=True)
    return Done(kept, outcome, len(odd), is_resumed, against)


def _kept(store: Store, records: Sequence[Record]) -> Path:
    """Keep each machine's records as a file of its own: the folder of one."""
    by: dict[object, list[Record]] = {}
    for record in records:
        by.setdefault(record.machine.get("host"), []).append(record)
    paths = [store.keep(Content(mine, {}))[0] for mine in by.values()]
    return paths[0].parent.parent if paths else store.runs
