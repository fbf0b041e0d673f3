"""Cells whose outputs changed to the bit while neither time nor error says so: a change that nobody meant, perhaps.

Equal bits night after night are a promise that a series makes by itself. Once it has kept it for ``STEADY`` nights, the
night that breaks it is an event as soon as a second one bears it out: by the same new bits, or by others again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from minimax_m2.harness.history.causes import Cause, Evidence, Ruling, classified
from minimax_m2.harness.history.events import TOGETHER, Event, Moved, evidence, factors, set_commits
from minimax_m2.harness.history.panel import Panel
from minimax_m2.harness.history.steps import Step

METRIC = "bits"
STEADY = 5
UNSTEADY = "the same sources, versions and machine give other bits: the kernel is not deterministic"


def bit_events(panel: Panel, told: Iterable[Event]) -> list[Event]:
    """Events of a lane whose rows no event of ``told`` has about the same night."""
    others = [event for event in told if event.metric != "canary"]
    by: dict[tuple[int, int], list[int]] = {}
    for row in range(len(panel.series)):
        for night, second in _changes(panel, row):
            if not any(row in event.rows and abs(event.night - night) <= TOGETHER for event in others):
                by.setdefault((night, second), []).append(row)
    return [
        _event(panel, night, second, factor, sorted(rows))
        for (night, second), every in sorted(by.items())
        for factor, rows in factors(panel, every)
    ]


def _changes(panel: Panel, row: int) -> Iterator[tuple[int, int]]:
    """Nights with other bits than the steady ones before, each with the night that bears it out."""
    known = [(night, bits) for night, bits in enumerate(panel.bits[row]) if bits]
    for at in range(STEADY, len(known) - 1):
        if len({bits for _, bits in known[at - STEADY : at]}) == 1 and known[at][1] != known[at - 1][1]:
            yield known[at][0], known[at + 1][0]


def _event(panel: Panel, night: int, second: int, factor: str, rows: list[int]) -> Event:
    step = Step(night, 0.0, 0.0, 0.0, 0.0)
    moved = [Moved(row, METRIC, step, second, "two nights") for row in rows]
    blank = Evidence(series=0, effect=0.0, changed={})
    event = Event(panel.lane, METRIC, night, factor, moved, Ruling(Cause.UNKNOWN, ""), blank, second)
    event.rows = rows
    set_commits(panel, event)
    # The machine's speed moves no bit, and the share of the lane says nothing of a cause.
    event.evidence = replace(evidence(panel, event), canary=0.0, lane_share=0.0, known=len(rows))
    ruling = classified(event.evidence)
    returned = any(_returned(panel, row, night) for row in rows)
    event.ruling = Ruling(Cause.UNKNOWN, UNSTEADY) if ruling.cause is Cause.NOISE else ruling
    back = ", and changed back" if returned else ""
    event.text = f"outputs changed to the bit{back}: {event.ruling.rule}"
    return event


def _returned(panel: Panel, row: int, night: int) -> bool:
    """Whether the bits of before a night came back after it."""
    before = next(bits for bits in reversed(panel.bits[row, :night]) if bits)
    return before in panel.bits[row, night + 1 :]
