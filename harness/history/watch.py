"""Night after night: what is suspicious, what a second look confirms, and what nobody is told of.

A night's question is asked of every series at once: has it stepped within the last nights, or is the newest night off?
Benjamini-Hochberg keeps the share of false answers at 5 %; those are *suspicious* and measured again at once. Where the
re-runs agree, or where there are none and the next night agrees, a step is *confirmed*. A series starts anew there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from minimax_m2.harness.history.panel import Again, Floats, Panel
from minimax_m2.harness.history.steps import LEAST, MAD, Step, clipped, dated, newest, segmented

# Of what is called suspicious, so many may be false.
FALSE_SHARE = 0.05
# Steps are looked for over so many nights, and told while they are so new.
WINDOW, NEW = 90, 8
# A series is judged from its so-many-th night on.
FIRST = 8
# Suspicion costs a re-run, a missed step a night: the gate stands lower here than for what is told without one.
SUSPECT_ERRORS = 4.0
# Re-runs agree if their median has half of the effect, and is so many errors of its own away from nothing.
AGREE, AGREE_ERRORS = 0.5, 3.0
# A median of normal values strays so much more than their mean.
MEDIAN_ERROR = 1.2533
FEWEST_RERUNS = 3
# What may step: time over the accepted build's, time at the machine's usual speed, share of the error budget.
METRICS = ("ratio", "time", "error")
# An error that rises within its budget is told from a tenth on.
LEAST_ERROR = math.log(1.1)

Rerun = Callable[[int, int], list[Again]]


@dataclass(frozen=True, slots=True, order=True)
class Suspicion:
    """One series that looked off in a night. ``told`` is how, ``step.night`` since when."""

    night: int
    row: int
    metric: str
    step: Step = field(compare=False)
    p: float = field(compare=False)


@dataclass(frozen=True, slots=True, order=True)
class Confirmed:
    """A suspicion that a second look bears out, and by what: re-runs of that night, or the next one."""

    suspicion: Suspicion
    night: int
    looks: str = field(compare=False)


@dataclass(slots=True)
class Watch:
    """The state of a lane: what is confirmed, and from which night each series starts anew."""

    panel: Panel
    rerun: Rerun | None = None
    since: dict[str, list[int]] = field(default_factory=dict)
    pending: dict[tuple[str, int], Suspicion] = field(default_factory=dict)
    suspected: int = 0
    values: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = {"ratio": self.panel.log_ratio, "time": self.panel.corrected, "error": self.panel.error}
        # The error of a case that is not judged is no error of nothing.
        self.values["error"] = np.where(np.isfinite(self.panel.share), self.values["error"], np.nan)
        self.since = {metric: [0] * len(self.panel.series) for metric in METRICS}

    def nights(self, first: int = FIRST) -> Iterator[list[Confirmed]]:
        """What each night from ``first`` on confirms."""
        for night in range(first, len(self.panel.nights)):
            yield self.judged(night)

    def judged(self, night: int) -> list[Confirmed]:
        """Judge the newest of the nights up to this one."""
        asked = [found for metric in METRICS for found in self._asked(metric, night)]
        suspicious = self._chosen(asked)
        self.suspected += len(suspicious)
        confirmed = [self._dated(found) for one in suspicious if (found := self._second_look(one)) is not None]
        self.pending = {(one.metric, one.row): one for one in suspicious}
        for found in confirmed:
            one = found.suspicion
            self.since[one.metric][one.row] = one.step.night
            self.pending.pop((one.metric, one.row), None)
        return confirmed

    def _asked(self, metric: str, night: int) -> Iterator[Suspicion]:
        """The most that each series shows, with the chance that it is nothing."""
        start = max(0, night + 1 - WINDOW)
        x = self.values[metric][:, start : night + 1].copy()
        for row, since in enumerate(self.since[metric]):
            x[row, : max(0, since - start)] = np.nan
        rows = np.flatnonzero((np.isfinite(x).sum(1) >= FIRST) & np.isfinite(x[:, -1]))
        if not len(rows):
            return
        cut = clipped(x[rows])
        least = LEAST_ERROR if metric == "error" else LEAST
        for at, nights in enumerate(segmented(cut)):
            row, sigma = int(rows[at]), float(cut.sigma[at])
            step = newest(x[row], cut.values[at], sigma, nights, errors=SUSPECT_ERRORS)
            if step is None or x.shape[1] - step.night > NEW:
                step = _last_night(x[row], sigma)
            if abs(step.effect) >= least and (metric != "error" or step.effect > 0):
                moved = replace(step, night=step.night + start)
                yield Suspicion(night, row, metric, moved, math.erfc(step.errors / math.sqrt(2)))

    def _chosen(self, asked: list[Suspicion]) -> list[Suspicion]:
        """Benjamini-Hochberg: the largest set that is expected to hold no more than its share of nothing."""
        count = sum(int(np.isfinite(x).any(1).sum()) for x in self.values.values())
        ordered = sorted(asked, key=lambda one: one.p)
        kept = [n for n, one in enumerate(ordered, 1) if one.p <= FALSE_SHARE * n / count]
        return ordered[: max(kept, default=0)]

    def _dated(self, found: Confirmed) -> Confirmed:
        one = found.suspicion
        night = dated(self.values[one.metric][one.row, : one.night + 1], one.step.night)
        return replace(found, suspicion=replace(one, step=replace(one.step, night=night)))

    def _second_look(self, one: Suspicion) -> Confirmed | None:
        again = self.panel.again.get((one.row, one.night)) or (self.rerun(one.row, one.night) if self.rerun else [])
        values = np.array([found.ratio if one.metric == "ratio" else found.time for found in again])
        values = values[np.isfinite(values)]
        # So few that the machine let through decide nothing; the next night does.
        if one.metric != "error" and len(values) >= FEWEST_RERUNS:
            return Confirmed(one, one.night, f"{len(values)} re-runs") if agrees(values, one.step) else None
        before = self.pending.get((one.metric, one.row))
        if before is None or before.step.effect * one.step.effect <= 0:
            return None
        return Confirmed(one, one.night, "two nights")


def suspicious_tonight(panel: Panel) -> list[int]:
    """The rows that look off on the newest night, to be measured again before it is over."""
    watch = Watch(panel)
    confirmed = list(watch.nights())[-1:]
    rows = {(one.suspicion.metric, one.suspicion.row) for found in confirmed for one in found} | set(watch.pending)
    return sorted({row for metric, row in rows if metric != "error"})


def agrees(values: Floats, step: Step) -> bool:
    """Whether re-runs show the step again: their median, which one disturbed run in two of five cannot move."""
    if len(values) < FEWEST_RERUNS:
        return False
    shown = float(np.median(values)) - step.before
    error = MEDIAN_ERROR * step.spread / math.sqrt(len(values))
    return shown * step.effect > 0 and abs(shown) >= max(AGREE * abs(step.effect), AGREE_ERRORS * error)


def _last_night(x: Floats, sigma: float) -> Step:
    """The newest night alone against the level that it follows."""
    before = x[:-1][np.isfinite(x[:-1])]
    level = float(np.median(before))
    spread = max(MAD * float(np.median(np.abs(before - level))), 0.5 * sigma)
    effect = float(x[-1]) - level
    return Step(len(x) - 1, level, effect, abs(effect) / (spread * math.sqrt(1 + 1 / len(before))), spread)
