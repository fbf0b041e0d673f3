"""What one machine of a fleet does: it plans with what it has, and answers each unit of work by whole lines.

A hand keeps nothing that matters: the one who asked writes, so whoever dies has lost only what he was at.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from minimax_m2.harness.case import Case
from minimax_m2.harness.matrix import Cell
from minimax_m2.harness.provenance import machine
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.score_plan import Asked, Plan, measured, plan
from minimax_m2.harness.shards import MODELS, WHOLE

Unit = tuple[str, ...]
# An op's cells go to one hand, which draws its inputs once, where there are so many ops a hand; else cell by cell.
OPS_A_HAND = 3


class Hand(Protocol):
    """One machine's part in a job."""

    def plan(self) -> list[tuple[Unit, float | None]]:
        """The units that this machine could do, with what each costs where it is known."""
        ...

    def do(self, unit: Unit) -> list[str]:
        """Do one: lines of JSON."""
        ...


class Job(Protocol):
    """What is asked of every hand; it travels, and makes a hand where it arrives."""

    def hand(self, device: str) -> Hand:
        """A hand that uses this device."""
        ...


def settle(threads: int) -> dict[str, str | int]:
    """Take so many threads, and say what this machine is. A cluster's own default is one thread."""
    torch.set_num_threads(threads)
    machine.cache_clear()
    return dict(machine())


def threads_of(hands: int) -> int:
    """Threads of one of so many hands of a machine: those asked for, else its share of the processor."""
    return int(os.environ.get("MINIMAX_M2_THREADS") or max(1, len(os.sched_getaffinity(0)) // hands))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob:
    """``m2check run``. ``files`` are providers' sources by name; ``failures`` known cases as JSON."""

    label: str
    files: Mapping[str, str]
    names: Sequence[str]
    ops: Sequence[str]
    variants: Sequence[str]
    count: int
    times: bool
    models: bool
    failures: Sequence[str]
    hands: int

    def hand(self, device: str) -> Hand:
        return RunHand(self, device)


class RunHand:
    """Judges cells."""

    def __init__(self, job: RunJob, device: str) -> None:
        from minimax_m2.harness.roofline import measure
        from minimax_m2.harness.run import planned

        self._job = job
        self._providers = _providers(job, device)
        every = planned(self._providers, ops=job.ops, variants=job.variants)
        self._cells = {cell.id: cell for cell in every if cell.device == device}
        self._roof = measure() if job.times else None
        self._with_models = job.models and device == "cpu"
        self._failures: dict[str, list[Case]] = {}
        for case in map(Case.from_json, job.failures):
            self._failures.setdefault(case.op, []).append(case)

    def plan(self) -> list[tuple[Unit, float | None]]:
        from minimax_m2.harness.commands_run import cost

        ops: dict[str, list[Cell]] = {}
        for cell in self._cells.values():
            ops.setdefault(cell.op, []).append(cell)
        together = len(ops) >= OPS_A_HAND * self._job.hands
        groups = list(ops.values()) if together else [[cell] for cell in self._cells.values()]
        units: list[tuple[Unit, float | None]] = [
            (tuple(cell.id for cell in group), sum(cost(cell) or 1.0 for cell in group)) for group in groups
        ]
        return [*units, *([((MODELS,), cost(MODELS))] if self._with_models else [])]

    def do(self, unit: Unit) -> list[str]:
        from minimax_m2.harness.commands_run import model_records
        from minimax_m2.harness.run import run

        job = self._job
        if unit == (MODELS,):
            return [row.json for row in model_records(self._providers, job.label, lambda text: None)]
        mine = [self._cells[name] for name in unit]
        found = run(
            self._providers, chosen=mine, count=job.count, roof=self._roof, name=job.label, failures=self._failures
        )
        return [record.json for record in found]


def _providers(job: RunJob, device: str) -> list[Provider]:
    """Those of the job, their files written here; its defaults where it names none."""
    from minimax_m2.harness.cli import chosen

    folder = Path(tempfile.mkdtemp(prefix="m2check-"))
    for name, text in job.files.items():
        (folder / f"{name}.py").write_text(text)
    found = chosen([folder / f"{name}.py" for name in job.files], list(job.names), device)
    return [provider for provider in found if provider.device == device]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob:
    """``m2check score``."""

    asked: Asked

    def hand(self, device: str) -> Hand:
        return ScoreHand(self.asked)


class ScoreHand:
    """Judges wrong providers, and holds right ones; a unit is a kind and a place in its list."""

    def __init__(self, asked: Asked) -> None:
        from minimax_m2.harness.op import all_ops, find_op

        self._whole = plan(asked, [find_op(name) for name in asked.ops or all_ops()])
        nothing: dict[str, tuple[()]] = {kind: () for kind in Plan.KINDS}
        self._empty = replace(self._whole, **nothing)  # type: ignore[arg-type]

    def plan(self) -> list[tuple[Unit, float | None]]:
        whole = self._whole
        return [
            ((kind, str(at)), whole.cost(kind, at)) for kind in Plan.KINDS for at in range(len(getattr(whole, kind)))
        ]

    def do(self, unit: Unit) -> list[str]:
        kind, at = unit[0], int(unit[1])
        one = replace(self._empty, **{kind: [getattr(self._whole, kind)[at]]})  # type: ignore[arg-type]
        return measured(one).lines(WHOLE)


def failures_of(known: Mapping[str, Sequence[Case]]) -> list[str]:
    """Known failures as a job carries them."""
    return [case.json for cases in known.values() for case in cases]
