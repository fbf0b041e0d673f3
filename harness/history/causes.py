"""Why a lane moved: the first rule that fires names the class and says by what evidence.

wrong        an error over its bound, or another outcome than a pass: needs no history
method       what takes the time changed: no time can be compared across that night
hardware     the machine's own canary moved, or another machine took over, and times moved with it
code         a pair with the accepted build moved, and so did the kernel's sources; or, without pairs, only
             series whose sources changed moved
reference    sources of what others are held against changed, and only that moved
environment  times moved beside an accepted build that moved too, or sources stayed and versions did not
noise        nothing that could have moved it changed
unknown      none of these, said so
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

# A canary that moved by less explains no step that is told.
CANARY = 0.015
# Of the series of an event, so many must carry a mark for it to be the event's.
MOST = 0.6
# What a version belongs to: its change is the machine's, not the software's.
PLACES = ("host", "processor", "accelerator")
METHODS = ("method", "clock", "threads")


class Cause(Enum):
    """What a movement is put down to."""

    WRONG = "wrong"
    METHOD = "method"
    HARDWARE = "hardware"
    CODE = "code"
    REFERENCE = "reference"
    ENVIRONMENT = "environment"
    NOISE = "noise"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one event.

    effect       log of the times' step, the median over its series
    paired       how many of its series moved in a pair with the accepted build, and how many have one before and after
    hashed       how many of its series have other sources since then, of those ``known``
    lane_share   how much of the lane moved
    canary       log of the step of the machine's speed
    changed      what of machine, software and method is another since then: name to (before, after)
    providers    whose series moved; ``candidate`` is ours
    """

    series: int
    effect: float
    paired: tuple[int, int] = (0, 0)
    hashed: int = 0
    known: int = 0
    lane_share: float = 0.0
    canary: float = 0.0
    changed: dict[str, tuple[str, str]]
    providers: tuple[str, ...] = ()
    candidate: str = "ours"
    is_wrong: bool = False
    is_canary: bool = False


@dataclass(frozen=True, slots=True)
class Ruling:
    """A class and the rule that fired, in words."""

    cause: Cause
    rule: str


def classified(found: Evidence) -> Ruling:
    """The first rule that fires."""
    if found.is_wrong:
        return Ruling(Cause.WRONG, "the error is over its bound, or the outcome is no pass: no history is needed")
    if method := _changed(found, METHODS):
        return Ruling(Cause.METHOD, f"what takes the time changed: {method}")
    if found.is_canary:
        place = _changed(found, PLACES)
        other = f", and the machine is another: {place}" if place else ""
        return Ruling(Cause.HARDWARE, f"the machine's own speed moved by {percent(found.canary)}{other}")
    moved, known = found.paired
    if moved and found.hashed >= MOST * found.series:
        return Ruling(Cause.CODE, f"{moved} of {known} pairs with the accepted build moved, and their sources changed")
    # Whatever its sources are: beside the accepted build, in the same minutes, nothing moved.
    stayed = known >= found.series and not moved
    if found.hashed >= MOST * found.series and found.candidate not in found.providers:
        who = ", ".join(found.providers)
        return Ruling(Cause.REFERENCE, f"only {who} moved, whose sources changed; {found.candidate} did not")
    if found.hashed >= MOST * found.series and not stayed:
        return Ruling(Cause.CODE, f"the sources of {found.hashed} of {found.series} series that moved changed")
    if place := _changed(found, PLACES):
        return Ruling(Cause.HARDWARE, f"another machine measures: {place}")
    versions = {name: both for name, both in found.changed.items() if name not in (*PLACES, *METHODS)}
    if versions:
        beside = f"; {known - moved} of {known} pairs with the accepted build stayed" if known else ""
        return Ruling(Cause.ENVIRONMENT, f"no source changed, but {_said(versions)}{beside}")
    if found.canary and abs(found.canary) >= CANARY and abs(found.canary) >= abs(found.effect) / 2:
        return Ruling(Cause.HARDWARE, f"the machine's own speed moved by {percent(found.canary)} the same night")
    if stayed:
        return Ruling(Cause.NOISE, f"{known} of {known} pairs with the accepted build stayed")
    if found.hashed:
        return Ruling(Cause.CODE, f"{found.hashed} of {found.series} series that moved have other sources")
    if found.known < MOST * found.series:
        return Ruling(Cause.UNKNOWN, "neither versions nor the machine's speed changed; its sources are not recorded")
    if found.lane_share >= MOST:
        return Ruling(Cause.UNKNOWN, "most of the lane moved, and nothing that is recorded changed")
    return Ruling(Cause.NOISE, "the same sources, versions and machine's speed before and after")


def _changed(found: Evidence, names: tuple[str, ...]) -> str:
    return _said({name: found.changed[name] for name in names if name in found.changed})


def _said(changed: dict[str, tuple[str, str]]) -> str:
    return ", ".join(
        f"{name} {before or 'unknown'} to {after or 'unknown'}" for name, (before, after) in changed.items()
    )


def percent(log: float) -> str:
    """A log as a signed percentage."""
    return f"{100 * math.expm1(log):+.1f} %"
