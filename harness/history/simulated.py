"""Nights that were never measured, for what the detector and the rules are held against; a page of them says so.

A world is a lane of ops, providers and shapes whose times are

    us = base * exp(changes + noise) / speed        log ratio = changes since the accepted build + noise of its own

``speed`` is the machine's in a night, which the canary sees and a pair cancels; ``noise`` is a series' own, with spikes. What a change does to times, hashes and versions stands in ``Change``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import numpy as np

from minimax_m2.harness.history.panel import Floats, Night, Panel
from minimax_m2.harness.history.series import Series

OPS = ("experts", "attention", "linear", "routing", "rms_norm", "qk_norm_rope", "lm_head", "swiglu")
# Flops a byte: those above the balance feel the product's canary, the others the copy's.
INTENSITY = {"experts": 30.0, "attention": 20.0, "linear": 40.0, "lm_head": 25.0}
SOFTWARE = {"torch": "2.13.0", "triton": "3.6.0", "driver": "580.1", "system": "Linux 6.8", "host": "node-a"}
# One night in fifty of a series is disturbed, by 5 to 30 %.
SPIKES, SPIKE = 0.02, (0.05, 0.30)
# Half of what moves a night moves the next one too.
PERSISTENCE = 0.5
# What is measured again is measured so often.
RERUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that happens before a night, and stays for ``nights``.

    ops, providers  whose times it moves by ``effect``, a log; empty: all
    hashes          whether the kernels' sources of those are others from then on
    context         what machine, software and method are from then on
    copy, gemm      how the canaries move, as logs of speed; times at that roof move against them
    """

    night: int
    effect: float = 0.0
    ops: Sequence[str] = ()
    providers: Sequence[str] = ()
    shapes: Sequence[str] = ()
    hashes: bool = False
    context: dict[str, str] = field(default_factory=dict)
    copy: float = 0.0
    gemm: float = 0.0
    nights: int = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A lane to simulate. ``noise`` is the standard deviation of a pair's log ratio, ``night`` of a whole night's."""

    seed: int
    nights: int
    noise: float = 0.006
    night: float = 0.02
    ops: Sequence[str] = OPS
    providers: Sequence[str] = ("ours", "plain")
    shapes: Sequence[str] = ("decode", "prefill")
    paired: Sequence[str] = ("ours",)
    spread: bool = False
    changes: Sequence[Change] = ()


def simulated(world: World) -> Panel:
    """The panel of a world, bit for bit the same for a seed."""
    rng = np.random.default_rng(world.seed)
    series = [
        Series(op=op, provider=provider, device="cpu", variant="", chip="simulated", threads=2, shape=shape,
               clock="stopwatch", case_id=f"{number:08x}")
        for number, (op, provider, shape) in enumerate(
            (op, provider, shape) for op in world.ops for provider in world.providers for shape in world.shapes
        )
    ]  # fmt: skip
    S, N = len(series), world.nights
    intensity = np.array([INTENSITY.get(one.op.split(".")[0], 1.0) for one in series])
    # Series differ in their noise: with `spread`, tenfold between the quietest and the loudest.
    sigma = world.noise * (np.exp(rng.uniform(np.log(0.4), np.log(2.5), S)) if world.spread else np.ones(S))
    moved, kernels, speeds = _changes(world, series)
    true = speeds - _persistent(rng, N, world.night)
    seen = true + rng.normal(0, 0.002, (2, N))
    base = rng.uniform(1.0, 7.0, S)
    at_roof = np.where(intensity < 8.0, 0, 1)
    own = base[:, None] + moved + _noise(rng, sigma, (S, N)) - true[at_roof]
    ratio = moved + _noise(rng, sigma, (S, N))
    paired = np.array([one.provider in world.paired for one in series])
    return Panel(
        "simulated", series, _nights(world, seen), np.exp(own), np.exp(base - 1.0)[:, None] * np.exp(-seen[at_roof]),
        np.where(paired[:, None], ratio, np.nan), np.full((S, N), 0.3), kernels, intensity,
    )  # fmt: skip


def measured_again(world: World, panel: Panel) -> Any:
    """What a re-run of a series finds in a night: the same changes and night, noise of its own."""
    rng = np.random.default_rng([world.seed, 1])
    moved, _, _ = _changes(world, panel.series)
    clean = panel.watched()

    def again(row: int, night: int) -> list[float]:
        known = np.isfinite(panel.log_ratio[row, night])
        level = moved[row, night] if known else float(np.median(clean[row, max(0, night - 1) : night + 1]))
        return [level + float(_noise(rng, np.array([world.noise]), (1, 1))[0, 0]) for _ in range(RERUNS)]

    return again


def _changes(world: World, series: Sequence[Series]) -> tuple[Floats, Any, Floats]:
    """Logs of times [S, N], hashes [S, N] and logs of canaries [2, N] that the changes leave."""
    S, N = len(series), world.nights
    moved, speeds = np.zeros((S, N)), np.zeros((2, N))
    kernels = np.array([[f"{one.op}-{one.provider}"] * N for one in series], dtype=object)
    for number, change in enumerate(world.changes):
        there = slice(change.night, min(N, change.night + change.nights))
        speeds[0, there] += change.copy
        speeds[1, there] += change.gemm
        for row, one in enumerate(series):
            if _touches(change, one):
                moved[row, there] += change.effect
                if change.hashes:
                    kernels[row, there] = f"{one.op}-{one.provider}-{number}"
    return moved, kernels, speeds


def _touches(change: Change, one: Series) -> bool:
    chosen = ((change.ops, one.op), (change.providers, one.provider), (change.shapes, one.shape))
    return all(not wanted or value in wanted for wanted, value in chosen)


def _nights(world: World, speeds: Floats) -> list[Night]:
    found = []
    for n in range(world.nights):
        context = dict(SOFTWARE, method="m0")
        for change in world.changes:
            if change.night <= n < change.night + change.nights:
                context |= change.context
        day = date(2026, 1, 1) + timedelta(days=n)
        found.append(
            Night(
                run=f"{day:%Y%m%d}T020000.000000Z", commit=f"{0xA000000 + 7919 * n:012x}", height=100 + n, context=context,
                copy_gbps=20.0 * float(np.exp(speeds[0, n])), gemm_gflops=150.0 * float(np.exp(speeds[1, n])),
            )
        )  # fmt: skip
    return found


def _noise(rng: np.random.Generator, sigma: Floats, shape: tuple[int, int]) -> Floats:
    spikes = (rng.random(shape) < SPIKES) * rng.uniform(*SPIKE, shape)
    return rng.normal(0, 1, shape) * sigma[:, None] + spikes


def _persistent(rng: np.random.Generator, count: int, sigma: float) -> Floats:
    found, last = np.zeros(count), 0.0
    for n in range(count):
        last = PERSISTENCE * last + rng.normal(0, sigma * np.sqrt(1 - PERSISTENCE**2))
        found[n] = last
    return found
