"""One night from its plan to the store: measured, resumed where it was killed, looked at again where it is odd."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from minimax_m2.harness.contenders import side
from minimax_m2.harness.history.builds import resolved, side_of, taken_out
from minimax_m2.harness.history.files import Content
from minimax_m2.harness.history.measuring import Night, Outcome, place, plan
from minimax_m2.harness.history.panel import panels
from minimax_m2.harness.history.store import Store
from minimax_m2.harness.history.under_way import Standing, Told
from minimax_m2.harness.history.watch import suspicious_tonight
from minimax_m2.harness.provenance import commit
from minimax_m2.harness.record import Log, read
from minimax_m2.harness.roofline import measure
from minimax_m2.harness.run import run_name
from minimax_m2.harness.shards import WHOLE, Shard
from minimax_m2.harness.worker import Ended

Progress = Callable[[str, float], None]
LAST_AGAINST = "SELECT against FROM points WHERE purpose = 'nightly' AND against LIKE ? ORDER BY run DESC LIMIT 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a night is asked for.

    against  a revision, empty for the build that the last night had
    build    the revision whose kernels are ours tonight, empty for this checkout's
    resource what the machines of a fleet have in common that measure it, empty for this machine
    """

    ops: tuple[str, ...] = ()
    providers: tuple[str, ...] = ("ours", "plain")
    against: str = ""
    build: str = ""
    budget: float = 40.0
    seconds: float = 1.5
    shard: Shard = WHOLE
    resource: str = ""

    def name(self) -> str:
        """What a killed night is found again by: the same build, cells and opposite."""
        text = json.dumps(
            [commit(), self.ops, self.providers, self.against, self.build, str(self.shard), self.resource]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Done:
    """A night that is in the store, and what is odd in it after a second look was taken."""

    kept: Path
    outcome: Outcome
    suspicious: int
    resumed: bool
    against: str


def accepted_commit(store: Store, revision: str) -> str:
    """The commit to hold ours against: the one asked for, else the last night's, else the first parent."""
    if revision:
        return resolved(revision)
    with store.connect() as index:
        rows = list(index.rows(LAST_AGAINST, ("ours@%",)))
    return resolved(rows[0]["against"].removeprefix("ours@") if rows else "HEAD^")


def nothing_of(outcome: Outcome, budget: float) -> str:
    """Why a night has no record."""
    told = f"{outcome.throttled} beside a slow machine, {outcome.refused} refused"
    return f"none of {outcome.planned} cells could be measured within {budget:g} minutes: {told}"


def journal_of(store: Store, asked: Asked) -> tuple[str, Path, bool]:
    """The label and journal of a night, and whether it is one that was killed."""
    pending = store.root / "pending"
    pending.mkdir(parents=True, exist_ok=True)
    left = sorted(pending.glob(f"*-{asked.name()}.jsonl"))
    label = left[-1].name.rpartition("-")[0] if left else run_name()
    return label, pending / f"{label}-{asked.name()}.jsonl", bool(left)


def night_of(
    asked: Asked, label: str, against: str, builds: Path, stack: ExitStack, progress: Progress
) -> Night:  # fmt: skip
    """A night on this machine: its roof is measured, and every build runs in a process of its own."""
    progress("measuring the roof", 0.0)
    roof = measure()
    build = taken_out(resolved(asked.build), builds) if asked.build else None
    sides = {
        name: stack.enter_context(
            side_of(build) if build and name == "ours" else side(name, own_process=name == "ours")
        )
        for name in asked.providers
    }
    try:
        accepted = stack.enter_context(side_of(taken_out(against, builds)))
    except (Ended, RuntimeError) as error:
        progress(f"the build {against[:12]} does not run here: {error}", 0.0)
        accepted = None
    return Night(
        label=label, roof=roof, sides=sides, accepted=accepted, against=f"ours@{against[:12]}", seconds=asked.seconds,
        build=build,
    )  # fmt: skip


def tonight(store: Store, asked: Asked, progress: Progress) -> Done:
    """Measure a night into the store. Raises ValueError for wrong use, RuntimeError where nothing could be measured."""
    until = time.monotonic() + 60 * asked.budget
    against = accepted_commit(store, asked.against)
    label, path, is_resumed = journal_of(store, asked)
    told = Told(path, Standing(run=label, against=against, build=asked.build or commit(), budget=asked.budget))
    progress = told.beside(progress)
    with Log(path) as log, ExitStack() as stack:
        night = night_of(asked, label, against, store.root / "builds", stack, progress)
        cells = plan(asked.ops, asked.providers, night.roof, shard=asked.shard)
        told.write(planned=len(cells))
        night.run(cells, log, until=lambda: time.monotonic() > until, progress=progress)
        records = read(path)
        if not records:
            path.unlink()
            nothing = nothing_of(night.outcome, asked.budget)
            told.write(told=nothing, ended=True)
            raise RuntimeError(nothing)
        kept, _ = store.keep(Content(records, {}))
        places = odd_places(store, label)
        odd = [cell for cell in cells if place(cell) in places]
        looked = [record for cell in odd for record in night.again(cell, progress)]
        if looked:
            store.keep(Content(looked, {}))
        # Only what is in the store is in no need of a journal.
        path.unlink()
        ending = f"{night.outcome.cells} cells are in the store, {len(odd)} were looked at again"
        told.write(told=ending, measured=len(records), ended=True)
    return Done(kept, night.outcome, len(odd), is_resumed, against)


def odd_places(store: Store, label: str) -> set[tuple[str, str, str]]:
    """Op, shape and provider of what looks off in the night that was just kept, beside the nights before it."""
    with store.connect() as index:
        lanes = [panel for panel in panels(index) if panel.nights[-1].run <= label]
        rows = [panel.series[row] for panel in lanes for row in suspicious_tonight(panel)]
    return {(one.op, one.shape, one.provider) for one in rows}
