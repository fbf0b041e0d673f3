"""Which places explain a model's drift: those that lock-step flags, confirmed by two runs; ddmin where they disagree.

``only there``  the candidate at these places, the reference everywhere else: must stray further than right models
``all but``     the candidate everywhere but there: must not
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from minimax_m2.harness.drift.answers import Answer, answers_of, exact_answers
from minimax_m2.harness.drift.candidate import Candidate, Place
from minimax_m2.harness.drift.ddmin import ddmin
from minimax_m2.harness.drift.lockstep import Cell, ranked
from minimax_m2.harness.drift.running import PINNED, Beside, Found
from minimax_m2.harness.drift.trajectory import Tell

ONLY, BUT, WHOLE = "only there", "all but", "everywhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of the candidate at some places."""

    told: str
    places: tuple[Place, ...]
    found: Found

    @property
    def drifts(self) -> bool:
        return self.found.has_drifted


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """What came of it.

    cells      the flagged cells, worst first
    places     the places that explain the drift; none where there is no drift to explain
    trials     the runs that say so, in order
    by_ddmin   whether lock-step and the runs disagreed, so that the places were searched for
    """

    cells: tuple[Cell, ...]
    places: tuple[Place, ...]
    trials: tuple[Trial, ...]
    by_ddmin: bool

    @property
    def explains(self) -> bool:
        """Whether the candidate drifts at these places and nowhere else."""
        outcome = {trial.told: trial.drifts for trial in self.trials}
        return bool(self.places) and outcome.get(ONLY, False) and not outcome.get(BUT, True)


Answering = Callable[[Callable[[Place], bool]], Answer]
"""Gives what answers as the candidate does at the places that it is asked for, and as the reference does elsewhere."""


def blamed(
    cells: Collection[Cell], candidate: Candidate, beside: Beside, *, rest: Answer = exact_answers,
    tell: Tell = lambda text, share: None,
) -> Blame:  # fmt: skip
    """Find the places from the cells of a lock-step run; ``rest`` answers where the candidate is left out."""

    def answering(where: Callable[[Place], bool]) -> Answer:
        return answers_of(candidate, rest=rest, where=where)

    return confirmed(cells, answering, beside, offered=list(candidate.offered()), tell=tell)


def confirmed(
    cells: Collection[Cell], answering: Answering, beside: Beside, *, offered: Sequence[str],
    tell: Tell = lambda text, share: None,
) -> Blame:  # fmt: skip
    """Find the places of whoever answers; taps stand at the ops that are ``offered``."""
    order = ranked(cells)
    flagged = tuple(cell for cell in order if cell.is_wrong)

    def trial(told: str, places: Sequence[Place], where: Callable[[Place], bool]) -> Trial:
        tell(f"{told}: {_named(places)}", 0.0)
        found = beside.beside(answering(where), PINNED, offered=offered)
        return Trial(told=told, places=tuple(places), found=found)

    def both(places: Sequence[Place]) -> list[Trial]:
        inside = frozenset(places)
        return [
            trial(ONLY, places, lambda place: place in inside),
            trial(BUT, places, lambda place: place not in inside),
        ]

    whole = trial(WHOLE, (), lambda place: True)
    suspects = [cell.place for cell in flagged]
    first = both(suspects) if suspects else []
    agree = bool(first) and first[0].drifts and not first[1].drifts
    if agree or not whole.drifts:
        return Blame(cells=flagged, places=tuple(suspects), trials=(whole, *first), by_ddmin=False)

    def fails(places: Sequence[Place]) -> bool:
        inside = frozenset(places)
        return trial(ONLY, places, lambda place: place in inside).drifts

    # Worst first: a prefix of them is the likeliest to fail.
    everywhere = [cell.place for cell in order]
    if not fails(everywhere):
        return Blame(cells=flagged, places=(), trials=(whole, *first), by_ddmin=True)
    found = ddmin(everywhere, fails)
    return Blame(cells=flagged, places=tuple(found), trials=(whole, *both(found)), by_ddmin=True)


def _named(places: Sequence[Place]) -> str:
    return ", ".join(f"layer {layer} {step}" for layer, step in places[:3]) + (", ..." if len(places) > 3 else "")
