"""Nights that were never measured, for what the detector and the rules are held against; a page of them says so.

A world is a lane of ops, providers and shapes whose times are

    us = base * exp(changes + noise) / speed        log ratio = changes of our sources + noise of its own

``speed`` is the machine's in a night, which the canary sees; ``noise`` is a series' own, with spikes. The build
that was accepted meets the same machine and software, so a pair shows changes of sources only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray

from minimax_m2.harness.history.panel import Again, Floats, Night, Panel
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
    sigma = _sigma(world, S)
    moved, rebuilt, kernels, speeds = _changes(world, series)
    true = speeds - _persistent(rng, N, world.night)
    seen = true + rng.normal(0, 0.002, (2, N))
    base = rng.uniform(1.0, 7.0, S)
    at_roof = np.where(intensity < 8.0, 0, 1)
    own = base[:, None] + moved + _noise(rng, sigma, (S, N)) - true[at_roof]
    ratio = rebuilt + _noise(rng, sigma, (S, N))
    paired = np.array([one.provider in world.paired for one in series])
    return Panel(
        "simulated", series, _nights(world, seen), np.exp(own), np.exp(base - 1.0)[:, None] * np.exp(-seen[at_roof]),
        np.where(paired[:, None], ratio, np.nan), np.full((S, N), 0.3), kernels, _methods(world, S), intensity,
    )  # fmt: skip


def measured_again(world: World, panel: Panel) -> Callable[[int, int], list[Again]]:
    """What a re-run of a series finds in a night: the same changes, noise of its own."""
    rng = np.random.default_rng([world.seed, 1])
    moved, rebuilt, _, _ = _changes(world, panel.series)
    base, sigma = np.nanmedian(panel.corrected - moved, axis=1), _sigma(world, len(panel.series))

    def again(row: int, night: int) -> list[Again]:
        noise = _noise(rng, np.full(2, sigma[row]), (2, RERUNS))
        paired = np.isfinite(panel.log_ratio[row, night])
        ratios = rebuilt[row, night] + noise[1] if paired else np.full(RERUNS, np.nan)
        return [
            Again(float(t), float(r)) for t, r in zip(base[row] + moved[row, night] + noise[0], ratios, strict=True)
        ]

    return again


def _changes(world: World, series: Sequence[Series]) -> tuple[Floats, Floats, NDArray[np.object_], Floats]:
    """Logs of times [S, N], those by sources alone, hashes [S, N], and logs of canaries [2, N] that changes leave."""
    S, N = len(series), world.nights
    moved, rebuilt, speeds = np.zeros((S, N)), np.zeros((S, N)), np.zeros((2, N))
    kernels = np.array([[f"{one.op}-{one.provider}"] * N for one in series], dtype=object)
    for number, change in enumerate(world.changes):
        there = slice(change.night, min(N, change.night + change.nights))
        speeds[0, there] += change.copy
        speeds[1, there] += change.gemm
        for row, one in enumerate(series):
            if _touches(change, one):
                moved[row, there] += change.effect
                if change.hashes:
                    rebuilt[row, there] += change.effect
                    kernels[row, there] = f"{one.op}-{one.provider}-{number}"
    return moved, rebuilt, kernels, speeds


def _touches(change: Change, one: Series) -> bool:
    chosen = ((change.ops, one.op), (change.providers, one.provider), (change.shapes, one.shape))
    return all(not wanted or value in wanted for wanted, value in chosen)


def _nights(world: World, speeds: Floats) -> list[Night]:
    found = []
    for n in range(world.nights):
        context = _context(world, n)
        del context["method"]
        day = date(2026, 1, 1) + timedelta(days=n)
        found.append(
            Night(
                run=f"{day:%Y%m%d}T020000.000000Z", commit=f"{0xA000000 + 7919 * n:012x}", height=100 + n,
                context=context, copy_gbps=20.0 * float(np.exp(speeds[0, n])),
                gemm_gflops=150.0 * float(np.exp(speeds[1, n])),
            )
        )  # fmt: skip
    return found


def _context(world: World, night: int) -> dict[str, str]:
    """What machine, software and method are in a night."""
    context = dict(SOFTWARE, method="m0")
    for change in world.changes:
        if change.night <= night < change.night + change.nights:
            context |= change.context
    return context


def _methods(world: World, count: int) -> NDArray[np.object_]:
    """A method is every op's or nobody's here: [S, N]."""
    return np.array([[_context(world, n)["method"] for n in range(world.nights)]] * count, dtype=object)


def _sigma(world: World, count: int) -> Floats:
    """Each series' noise; with ``spread`` sixfold between the quietest and the loudest."""
    rng = np.random.default_rng([world.seed, 2])
    return world.noise * (np.exp(rng.uniform(math.log(0.4), math.log(2.5), count)) if world.spread else np.ones(count))


def _noise(rng: np.random.Generator, sigma: Floats, shape: tuple[int, int]) -> Floats:
    spikes = (rng.random(shape) < SPIKES) * rng.uniform(*SPIKE, shape)
    return rng.normal(0, 1, shape) * sigma[:, None] + spikes


def _persistent(rng: np.random.Generator, count: int, sigma: float) -> Floats:
    found, last = np.zeros(count), 0.0
    for n in range(count):
        last = PERSISTENCE * last + rng.normal(0, sigma * np.sqrt(1 - PERSISTENCE**2))
        found[n] = last
    return found
