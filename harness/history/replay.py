"""How the detector does on nights whose truth is known: alarms of nothing, steps found, causes named.

``python -m minimax_m2.harness.history.replay`` prints the figures of docs/nightly.md; pages show them in their footer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimax_m2.harness.history.causes import Cause
from minimax_m2.harness.history.events import Event, events_of
from minimax_m2.harness.history.simulated import OPS, Change, World, measured_again, simulated
from minimax_m2.harness.history.watch import Watch

# Nights that teach a series' noise before any is judged.
TAUGHT = 30
NOISE = 0.006


@dataclass(frozen=True, slots=True)
class Quiet:
    """What nights of nothing led to."""

    series: int
    nights: int
    events: int
    suspicions: int


def false_events(*, seed: int, nights: int, copies: int, progress: Callable[[int], None] = lambda night: None) -> Quiet:
    """Replay nights in which nothing changed; every confirmation is false. ``copies`` of 32 series differ in noise."""
    ops = [f"{op}.{copy}" for op in OPS for copy in range(copies)]
    world = World(seed=seed, nights=nights, noise=NOISE, spread=True, ops=ops)
    panel = simulated(world)
    watch, events = Watch(panel, measured_again(world, panel)), 0
    for night in range(TAUGHT, nights):
        progress(night)
        events += len(watch.judged(night))
    return Quiet(len(panel.series), nights - TAUGHT, events, watch.suspected)


def recall(*, seed: int, effect: float, within: int) -> float:
    """The share of 120 series with a step in their sources that is told before so many nights have passed."""
    ops = [f"{op}.{copy}" for op in OPS for copy in range(15)]
    rng, start = np.random.default_rng(seed), 40
    chosen = [str(op) for op in rng.choice(ops, 60, replace=False)]
    changes = [
        Change(night=start, effect=sign * effect, ops=chosen[half::2], providers=["ours"], hashes=True)
        for half, sign in enumerate((1, -1))
    ]
    world = World(seed=seed, nights=start + within, noise=NOISE, spread=True, ops=ops, changes=changes)
    panel = simulated(world)
    watch, told = Watch(panel, measured_again(world, panel)), set[int]()
    for night in range(TAUGHT, start + within):
        told |= {one.suspicion.row for one in watch.judged(night) if night >= start and one.suspicion.metric == "ratio"}
    touched = {row for row, one in enumerate(panel.series) if one.op in chosen and one.provider == "ours"}
    return len(told & touched) / len(touched)


def world_of(recipe: Mapping[str, Any]) -> World:
    """The world of a recorded cause."""
    changes = [Change(**change) for change in recipe["changes"]]
    return World(seed=recipe["seed"], nights=40, noise=recipe["noise"], night=recipe["night"], changes=changes)


def cause_of(recipe: Mapping[str, Any]) -> Cause:
    """What the rules make of a world: the class of its largest event, noise where nothing is told."""
    world = world_of(recipe)
    panel = simulated(world)
    told = [
        event
        for event in events_of(panel, rerun=measured_again(world, panel), first=TAUGHT // 3 * 2)
        if event.ruling.cause is not Cause.NOISE
    ]
    largest = max(told, key=_size, default=None)
    return Cause.NOISE if largest is None else largest.ruling.cause


def _size(event: Event) -> tuple[bool, int, float]:
    # A canary is every series of its lane.
    return event.metric == "canary", len(event.rows), abs(event.effect)


def causes_right(path: Path) -> tuple[int, int]:
    """How many causes of a file are named right, of how many."""
    recipes = json.loads(path.read_text())
    return sum(cause_of(recipe).value == recipe["cause"] for recipe in recipes), len(recipes)


def main() -> None:
    """Print the figures; the folder of recorded causes is the argument."""
    (folder,) = sys.argv[1:]
    lines = ["| what | simulated | result |", "|---|---|---|"]
    for nights in (60, 365):
        found = false_events(seed=22, nights=nights, copies=37)
        months = found.nights / 30.4
        lines.append(
            f"| false events | {found.series} series, {found.nights} nights after {TAUGHT} | {found.events}, "
            f"{found.events / months:.2f} a month; {found.suspicions / found.nights:.0f} re-runs a night |"
        )
    for effect in (0.02, 0.03, 0.05):
        shares = [recall(seed=seed, effect=effect, within=5) for seed in (5, 6, 7)]
        lines.append(
            f"| found within 5 nights | {100 * effect:.0f} % steps, 360 series | {100 * np.mean(shares):.1f} % |"
        )
    for name in ("causes.json", "held_out/causes.json"):
        right, count = causes_right(Path(folder) / name)
        lines.append(f"| causes named right | {name} | {right} of {count} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
