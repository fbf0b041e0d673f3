"""Events: series that moved in the same nights and share a factor, told once, with the cause and what to run next."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from minimax_m2.harness.history.causes import Cause, Evidence, Ruling, classified
from minimax_m2.harness.history.panel import Panel, changed
from minimax_m2.harness.history.series import Series
from minimax_m2.harness.history.steps import LEAST, Step, clipped, dated, newest, segmented
from minimax_m2.harness.history.watch import FIRST, NEW, WINDOW, Confirmed, Rerun, Watch

# Steps of one change are placed so many nights apart at most.
TOGETHER = 2
# A factor is shared if so many of its series moved.
SHARED = 0.6
# A machine's speed wanders from night to night: it steps when it moves by so much, by so many deviations of a night,
# and so many standard errors.
CANARY_LEAST, CANARY_SPREADS, CANARY_ERRORS = 0.03, 2.5, 6.0


@dataclass(frozen=True, slots=True)
class Moved:
    """One series of an event: its step, and when it was confirmed, by what."""

    row: int
    metric: str
    step: Step
    night: int
    looks: str


@dataclass(slots=True)
class Event:
    """What a lane tells. ``night`` is the first that has it; the commits after ``good`` up to ``bad`` are suspects.

    factor   what its series share, in words
    made_up  the later event by which our code has made up for it: its series are where they were, or faster
    """

    lane: str
    metric: str
    night: int
    factor: str
    moved: list[Moved]
    ruling: Ruling
    evidence: Evidence
    told: int
    number: int = 0
    good: str = ""
    bad: str = ""
    commits: int = 0
    effect: float = 0.0
    low: float = 0.0
    high: float = 0.0
    accepted: str = ""
    made_up: Event | None = None
    text: str = ""
    rows: list[int] = field(default_factory=list)

    @property
    def is_slower(self) -> bool:
        return self.effect > 0

    @property
    def state(self) -> str:
        return "accepted" if self.accepted else "wrong" if self.ruling.cause is Cause.WRONG else "confirmed"

    def key(self, panel: Panel) -> str:
        """What an acceptance names: the change itself, whatever number it has in a store."""
        first = min(panel.series[row].key for row in self.rows) if self.rows else self.lane
        sign = "+" if self.effect > 0 else "-"
        text = f"{self.lane}\x1f{self.metric}\x1f{panel.nights[self.night].run}\x1f{sign}\x1f{first}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def events_of(
    panel: Panel,
    *,
    rerun: Rerun | None = None,
    first: int = FIRST,
    progress: Callable[[int], None] = lambda night: None,
) -> list[Event]:
    """All events of a lane, the earliest first; wrong outcomes of the newest night are among them."""
    watch, found = Watch(panel, rerun), list[Event]()
    for night in range(first, len(panel.nights)):
        progress(night)
        new = [_moved(one) for one in watch.judged(night)]
        for event in found:
            new = [one for one in new if not _joins(panel, event, one)]
        found += _grouped(panel, new, night)
        found += [event for event in canary_events(panel, night) if not _known(found, event)]
    for event in found:
        if event.metric != "canary":
            _settle(panel, event)
    for event in found:
        event.made_up = _made_up(event, found)
    return [*found, *wrong_tonight(panel)]


def _moved(one: Confirmed) -> Moved:
    return Moved(one.suspicion.row, one.suspicion.metric, one.suspicion.step, one.night, one.looks)


def _joins(panel: Panel, event: Event, one: Moved) -> bool:
    """Take a series into an event that it belongs to: the same nights, the same direction, the same factor."""
    near = abs(one.step.night - event.night) <= TOGETHER and one.night - event.told <= NEW
    sides = {member.step.effect > 0 for member in event.moved}
    shares = one.row in event.rows or _factor_of(panel.series[one.row], event.factor)
    if event.metric == "canary" or not (near and shares and (one.step.effect > 0) in sides):
        return False
    if (one.metric == "error") != (event.metric == "error"):
        return False
    if not any(member.row == one.row and member.metric == one.metric for member in event.moved):
        event.moved.append(one)
        event.rows = sorted({member.row for member in event.moved})
    return True


def _known(found: Iterable[Event], event: Event) -> bool:
    return any(
        other.metric == event.metric and abs(other.night - event.night) <= NEW and other.effect * event.effect > 0
        for other in found
    )


def _grouped(panel: Panel, moved: list[Moved], night: int) -> list[Event]:
    """Events of one night's confirmations: by nights and direction, then by the widest factor that they share."""
    found = []
    left = sorted(moved, key=lambda one: (one.metric == "error", one.step.effect > 0, one.step.night))
    while left:
        head = left[0]
        same = [
            one for one in left
            if (one.metric == "error") == (head.metric == "error")
            and one.step.effect * head.step.effect > 0
            and abs(one.step.night - head.step.night) <= TOGETHER
        ]  # fmt: skip
        for factor, rows in factors(panel, sorted({one.row for one in same})):
            members = [one for one in same if one.row in rows]
            found.append(_event(panel, members, factor, night))
        left = [one for one in left if one not in same]
    return found


def factors(panel: Panel, rows: Sequence[int]) -> list[tuple[str, set[int]]]:
    """Rows by what they share, the widest factor first."""
    left, found = set(rows), list[tuple[str, set[int]]]()
    every = panel.series
    by: list[Callable[[Series], str]] = [
        lambda s: "all",
        lambda s: s.provider,
        lambda s: f"{s.op} of all",
        lambda s: f"{s.op} of {s.provider}",
    ]
    for factor in by:
        for name in dict.fromkeys(factor(every[row]) for row in sorted(left)):
            whole = {row for row, one in enumerate(every) if factor(one) == name}
            inside = whole & left
            if len(inside) >= 2 and len(inside) >= SHARED * len(whole):
                found.append((name, inside))
                left -= inside
    return found + [(str(every[row]), {row}) for row in sorted(left)]


def _factor_of(one: Series, factor: str) -> bool:
    return factor in ("all", one.provider, f"{one.op} of all", f"{one.op} of {one.provider}", str(one))


def _event(panel: Panel, moved: list[Moved], factor: str, night: int) -> Event:
    first = int(np.median([one.step.night for one in moved]))
    metric = "error" if moved[0].metric == "error" else "time"
    blank = Evidence(series=0, effect=0.0, changed={})
    event = Event(panel.lane, metric, first, factor, moved, Ruling(Cause.UNKNOWN, ""), blank, night)
    event.rows = sorted({one.row for one in moved})
    return event


def _settle(panel: Panel, event: Event) -> None:
    """What is known once all its series are: nights, commits, effect, evidence, cause."""
    effects = np.array([one.step.effect for one in event.moved])
    values = {"ratio": panel.log_ratio, "time": panel.corrected, "error": panel.error}
    event.night = int(np.median([dated(values[one.metric][one.row], one.step.night) for one in event.moved]))
    event.effect = float(np.median(effects))
    error = float(np.median([abs(one.step.effect) / max(one.step.errors, 1e-9) for one in event.moved]))
    half = 1.96 * error / math.sqrt(len(event.rows))
    event.low, event.high = event.effect - half, event.effect + half
    set_commits(panel, event)
    event.evidence = evidence(panel, event)
    event.ruling = classified(event.evidence)


def _made_up(event: Event, found: Sequence[Event]) -> Event | None:
    """The last event that takes every series back, to within what is told at all, to where it was."""
    if not _is_ours(event) or not event.is_slower:
        return None
    rows = set(event.rows)
    # One that undoes another within its night is no earlier.
    later = [e for e in found if e is not event and _is_ours(e) and e.night >= event.night and rows & set(e.rows)]
    left = (sum(_effect(one, row) for one in [event, *later]) for row in rows)
    return max(later, key=lambda one: one.night) if later and max(left) < LEAST else None


def _is_ours(event: Event) -> bool:
    return event.metric == "time" and event.ruling.cause is Cause.CODE


def _effect(event: Event, row: int) -> float:
    steps = [one.step.effect for one in event.moved if one.row == row]
    return float(np.median(steps)) if steps else 0.0


def set_commits(panel: Panel, event: Event) -> None:
    """The commits between which an event lies."""
    before, after = panel.nights[max(0, event.night - 1)], panel.nights[event.night]
    event.good, event.bad = before.commit, after.commit
    event.commits = max(0, after.height - before.height)


def evidence(panel: Panel, event: Event) -> Evidence:
    """What changed on the lane in the nights of an event, and what moved with it."""
    before, after = max(0, event.night - 1), event.night
    rows = event.rows
    nights = range(max(1, after - TOGETHER + 1), min(len(panel.nights), after + TOGETHER))
    hashed = sum(any(_differs(panel, row, n) for n in nights) for row in rows)
    old, new = panel.nights[before].context, panel.nights[after].context
    canary = panel.canary
    shift = [
        float(np.mean(canary[row, after : after + 3]) - np.mean(canary[row, max(0, before - 4) : before + 1]))
        for row in rows
    ]
    # A ratio of times says nothing of errors and of bits.
    pairs = np.isfinite(panel.log_ratio) & (event.metric == "time")
    has_pair = [row for row in rows if pairs[row, :after].any() and pairs[row, after:].any()]
    return Evidence(
        series=len(rows),
        effect=event.effect,
        paired=(len({one.row for one in event.moved if one.metric == "ratio"}), len(has_pair)),
        hashed=hashed,
        known=sum(any(panel.kernels[row, n] for n in nights) for row in rows),
        lane_share=len(rows) / max(1, len(panel.series)),
        canary=float(np.median(shift)) if shift else 0.0,
        changed={
            key: (old.get(key, ""), new.get(key, "")) for key in sorted({*old, *new}) if old.get(key) != new.get(key)
        }
        | _methods(panel, rows, nights),
        providers=tuple(sorted({panel.series[row].provider for row in rows})),
    )


def _methods(panel: Panel, rows: Sequence[int], nights: Iterable[int]) -> dict[str, tuple[str, str]]:
    """The method where it became another for every series that moved: a common change of theirs, as a version's is."""
    found = [next((change for n in nights if (change := changed(panel.methods[row], n))), None) for row in rows]
    return {"method": found[0]} if found and found[0] and all(found) else {}


def _differs(panel: Panel, row: int, night: int) -> bool:
    """Whether a series' sources in a night are known to be others than on the night before that has them."""
    return changed(panel.kernels[row], night) is not None


def canary_events(panel: Panel, night: int) -> list[Event]:
    """Steps of the machine's own speed: what they move is the machine's."""
    found = []
    start = max(0, night + 1 - WINDOW)
    for name in ("copy_gbps", "gemm_gflops"):
        speeds = np.log([[getattr(one, name) for one in panel.nights[start : night + 1]]])
        if not np.isfinite(speeds[0, -1]) or np.isfinite(speeds).sum() < FIRST:
            continue
        cut = clipped(speeds)
        step = newest(speeds[0], cut.values[0], float(cut.sigma[0]), segmented(cut)[0], errors=CANARY_ERRORS)
        if step is None or night + 1 - start - step.night > NEW:
            continue
        if abs(step.effect) < max(CANARY_LEAST, CANARY_SPREADS * step.spread):
            continue
        step = replace(step, night=step.night + start)
        error = abs(step.effect) / step.errors
        factor = "copy" if name == "copy_gbps" else "product"
        event = Event(
            panel.lane,
            "canary",
            step.night,
            factor,
            [],
            Ruling(Cause.UNKNOWN, ""),
            Evidence(series=0, effect=0.0, changed={}),
            night,
        )
        event.effect, event.low, event.high = step.effect, step.effect - 1.96 * error, step.effect + 1.96 * error
        set_commits(panel, event)
        event.evidence = replace(evidence(panel, event), canary=step.effect, is_canary=True, effect=step.effect)
        event.ruling = classified(event.evidence)
        found.append(event)
    return found


def wrong_tonight(panel: Panel) -> list[Event]:
    """An event for each op and provider that is wrong on the newest night: no history is needed."""
    if not panel.nights:
        return []
    last = len(panel.nights) - 1
    by: dict[tuple[str, str], list[int]] = {}
    for row, night in sorted(panel.wrong):
        if night == last:
            by.setdefault((panel.series[row].op, panel.series[row].provider), []).append(row)
    found = []
    for (op, provider), rows in by.items():
        share = max(
            (float(panel.share[row, last]) for row in rows if np.isfinite(panel.share[row, last])), default=math.nan
        )
        facts = Evidence(series=len(rows), effect=share, changed={}, is_wrong=True, providers=(provider,))
        event = Event(panel.lane, "error", last, f"{op} of {provider}", [], classified(facts), facts, last)
        event.rows, event.text, event.effect = rows, panel.wrong[rows[0], last], share
        set_commits(panel, event)
        found.append(event)
    return found
