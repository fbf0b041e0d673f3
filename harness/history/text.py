"""The page in a few lines, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minimax_m2.harness.history.formats import rows, size
from minimax_m2.harness.history.pages import newest_date, silent
from minimax_m2.harness.history.panel import Floats
from minimax_m2.harness.history.tonight import Lanes

BARS = "▁▂▃▄▅▆▇█"
NIGHTS = 30


def summary(lanes: Lanes) -> Iterator[str]:
    """A line a lane, then two an event, then what is silent."""
    for panel, found in lanes:
        yield f"{panel.lane}: {len(panel.series)} series, {len(panel.nights)} nights, {len(found)} events"
    flat = [event for _, found in lanes for event in found]
    for row, event in zip(rows(lanes), flat, strict=True):
        panel = next(panel for panel, found in lanes if event in found)
        values = panel.corrected[event.rows[0]] if event.rows else np.full(2, np.nan)
        yield f"{row['number']:>4} {row['cause']:11} {row['what']}  {size(row)}  {line(values)}  {row['date']}"
        yield f"     {row['text'] or row['rule']}"
    for number, (panel, _) in enumerate(lanes):
        for gone in silent(panel, number, newest_date(lanes)):
            yield f"     silent      {gone['series']} series {gone['text']}, {panel.lane}"


def line(values: Floats) -> str:
    """The last nights as bars; a night without is a blank."""
    shown = values[-NIGHTS:]
    known = shown[np.isfinite(shown)]
    if not len(known):
        return ""
    low, span = float(known.min()), max(float(np.ptp(known)), 0.02)
    return "".join(BARS[round((v - low) / span * (len(BARS) - 1))] if np.isfinite(v) else " " for v in shown)
