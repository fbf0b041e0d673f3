"""What a store says tonight: every lane with its events, numbered and accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minimax_m2.harness.history.accepted import FOLDER, numbered
from minimax_m2.harness.history.causes import Cause
from minimax_m2.harness.history.events import Event, events_of
from minimax_m2.harness.history.other_bits import bit_events
from minimax_m2.harness.history.panel import Panel, panels
from minimax_m2.harness.history.store import Store

Lanes = list[tuple[Panel, list[Event]]]


def lanes_of(
    store: Store, *, since: str = "", accepted: Path = FOLDER, progress: Callable[[str], None] = lambda text: None
) -> Lanes:
    """Every lane of a store, its events the earliest first. Raises ValueError for a file that is no acceptance."""
    with store.connect() as index:
        found: Lanes = []
        for panel in panels(index, since=since):
            progress(f"{panel.lane}: {len(panel.series)} series, {len(panel.nights)} nights")
            events = events_of(panel)
            found.append((panel, [*events, *bit_events(panel, events)]))
    numbered(found, accepted)
    return found


def is_regression(event: Event) -> bool:
    """Whether somebody must act: it is wrong, its error rose, or our code made it slower and nothing made up for it.

    Nobody must where somebody accepted it.
    """
    if event.accepted or event.made_up:
        return False
    if event.ruling.cause is Cause.WRONG or event.metric == "error":
        return True
    return event.ruling.cause is Cause.CODE and event.is_slower


def find_event(lanes: Lanes, number: int) -> tuple[Panel, Event]:
    """One event by its number; KeyError lists the known ones."""
    every = {event.number: (panel, event) for panel, events in lanes for event in events}
    if number not in every:
        known = f"there are 1 to {max(every)}" if every else "there is none"
        raise KeyError(f"no event has the number {number}; {known}")
    return every[number]
