"""Where a series steps: many at once, exactly, and only as far as their noise can show it.

    clipped    values within 3 MAD of the running median of 7 nights: one bad night moves nothing
    segmented  the piecewise constant fit of least squares, 3 log(N) sigma^2 a piece, no piece under 3 nights
    gated      of these the steps whose effect is at least so large, and so many of its standard errors,
               those being inflated by the correlation of one night with the next

Simulated series of 120 nights are the reason for each part: clipping and the gate matter more than the algorithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from minimax_m2.harness.history.panel import Floats

# Nights of the running median; how many MAD around it are kept; what the MAD of normal noise lacks to its deviation,
# and what the running median takes from it.
AROUND, CLIP, MAD, TAKEN = 7, 3.0, 1.4826, 1.15
FEWEST = 3
PENALTY = 3.0
# The smallest step that is told: below it nobody acts.
LEAST = 0.02
ERRORS = 5.0
# A deviation that is smaller than this is rounding of what was written down.
QUIETEST = 5e-4
MOST_CORRELATED = 0.85


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a series before ``night``: from ``before`` by ``effect``, so many standard errors wide.

    spread  deviation of a single night
    """

    night: int
    before: float
    effect: float
    errors: float
    spread: float


@dataclass(frozen=True, slots=True)
class Clipped:
    """Series with their single bad nights cut: values [S, N], 1 where there is a night, deviation [S]."""

    values: Floats
    present: Floats
    sigma: Floats


def clipped(x: Floats) -> Clipped:
    """Cut what strays; a night that is missing takes the last value and weighs nothing."""
    present = np.isfinite(x)
    filled = _filled(x, present)
    half = AROUND // 2
    around = np.pad(filled, ((0, 0), (half, half)), mode="reflect" if x.shape[1] > half else "edge")
    middle = np.median(np.lib.stride_tricks.sliding_window_view(around, AROUND, axis=1), axis=2)
    deviation = np.where(present, np.abs(filled - middle), np.nan)
    sigma = np.maximum(TAKEN * MAD * _nanmedian(deviation), QUIETEST)
    reach = CLIP * sigma[:, None]
    return Clipped(np.clip(filled, middle - reach, middle + reach), present.astype(float), sigma)


def _filled(x: Floats, present: NDArray[np.bool_]) -> Floats:
    last = np.maximum.accumulate(np.where(present, np.arange(x.shape[1]), -1), axis=1)
    first = present.argmax(1)
    taken = np.where(last < 0, first[:, None], last)
    return np.nan_to_num(np.take_along_axis(x, taken, axis=1))


def _nanmedian(values: Floats) -> Floats:
    """Median of each row's numbers, 0 where it has none."""
    ordered = np.sort(values, axis=1)
    count = np.isfinite(ordered).sum(1)
    rows = np.arange(len(values))
    low, high = (
        ordered[rows, np.maximum(0, (count - 1) // 2)],
        ordered[rows, np.minimum(count // 2, values.shape[1] - 1)],
    )
    return np.where(count > 0, (low + high) / 2, 0.0)


def segmented(series: Clipped) -> list[list[int]]:
    """The nights before which each series steps, by dynamic programming over all of them at once."""
    values, weight = series.values * series.present, series.present
    S, N = values.shape
    zero = np.zeros((S, 1))
    total, square, count = (
        np.concatenate([zero, np.cumsum(part, axis=1)], axis=1) for part in (values, values * series.values, weight)
    )
    penalty = PENALTY * math.log(max(N, 2)) * series.sigma**2
    best, start = np.full((S, N + 1), np.inf), np.zeros((S, N + 1), dtype=np.int64)
    best[:, 0] = -penalty
    for t in range(1, N + 1):
        nights = count[:, t : t + 1] - count[:, :t]
        cost = square[:, t : t + 1] - square[:, :t] - (total[:, t : t + 1] - total[:, :t]) ** 2 / np.maximum(nights, 1)
        allowed = (nights >= FEWEST) & (count[:, :t] >= FEWEST)
        # A series' first piece may be as short as the series.
        allowed[:, 0] = True
        value = np.where(allowed, best[:, :t] + cost + penalty[:, None], np.inf)
        start[:, t] = value.argmin(1)
        best[:, t] = np.take_along_axis(value, start[:, t : t + 1], axis=1)[:, 0]
    return [_back(row, N) for row in start]


def _back(start: NDArray[np.int64], end: int) -> list[int]:
    found: list[int] = []
    while (end := int(start[end])) > 0:
        found.append(end)
    return found[::-1]


def gated(x: Floats, clip: Floats, sigma: float, nights: list[int], *, errors: float = ERRORS) -> list[Step]:
    """The steps of one series [N] that its noise can show; the weakest goes first, its neighbours anew."""
    left = list(nights)
    while left:
        edges = [0, *left, len(x)]
        pieces = [slice(a, b) for a, b in pairwise(edges)]
        spread, correlation = _noise(x, clip, pieces, sigma)
        steps = [_step(x[before], x[after], after.start, spread, correlation) for before, after in pairwise(pieces)]
        weakest = min(range(len(steps)), key=lambda n: min(steps[n].errors / errors, abs(steps[n].effect) / LEAST))
        if steps[weakest].errors >= errors and abs(steps[weakest].effect) >= LEAST:
            return steps
        left.pop(weakest)
    return []


def newest(x: Floats, clip: Floats, sigma: float, nights: list[int], *, errors: float) -> Step | None:
    """The last of the steps against all that went before it: a few disturbed nights before it are no level."""
    found = gated(x, clip, sigma, nights, errors=errors) if nights else []
    if not found:
        return None
    last = found[-1].night
    _, correlation = _noise(x, clip, [slice(0, last), slice(last, len(x))], sigma)
    step = _step(x[:last], x[last:], last, found[-1].spread, correlation)
    return step if step.errors >= errors else None


def dated(x: Floats, night: int, *, around: int = 2, nights: int = 12) -> int:
    """The night before which a series [N] steps, near ``night``: the split whose two medians leave least behind.

    A fit's piece is three nights at least, so a newer step seems to be older than it is; a commit hangs on the night.
    """
    start, end = max(0, night - nights), min(len(x), night + nights)

    def left(split: int) -> float:
        parts = (x[start:split], x[split:end])
        return float(sum(np.abs(part[np.isfinite(part)] - np.nanmedian(part)).sum() for part in parts))

    splits = range(max(start + 1, night - around), min(end, night + around + 1))
    known = [k for k in splits if np.isfinite(x[start:k]).any() and np.isfinite(x[k:end]).any()]
    return min(known, key=left, default=night)


def _noise(x: Floats, clip: Floats, pieces: list[slice], sigma: float) -> tuple[float, float]:
    """Deviation within pieces, and correlation of one night with the next."""
    rest = np.concatenate([clip[piece] - np.nanmedian(x[piece]) for piece in pieces])
    rest = rest[np.isfinite(np.concatenate([x[piece] for piece in pieces]))]
    # One standard error less than what is seen: of few nights a correlation is seen where there is none.
    seen = (
        float(np.corrcoef(rest[:-1], rest[1:])[0, 1]) if len(rest) > 8 and rest[:-1].std() > 0 < rest[1:].std() else 0.0
    )
    correlation = min(MOST_CORRELATED, max(0.0, seen))
    return max(MAD * float(np.median(np.abs(rest))), 0.5 * sigma), correlation


def _step(before: Floats, after: Floats, night: int, spread: float, correlation: float) -> Step:
    """The Hodges-Lehmann effect between two pieces, in standard errors that know of correlated nights."""
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    if not len(before) or not len(after):
        return Step(night, math.nan, 0.0, 0.0, spread)
    effect = float(np.median(np.subtract.outer(after, before)))
    error = 1.05 * spread * math.sqrt((1 / len(before) + 1 / len(after)) * (1 + correlation) / (1 - correlation))
    return Step(night, float(np.median(before)), effect, abs(effect) / error, spread)


def steps(x: Floats, *, errors: float = ERRORS) -> list[list[Step]]:
    """The steps of each series [S, N]."""
    cut = clipped(x)
    return [
        gated(x[row], cut.values[row], float(cut.sigma[row]), nights, errors=errors) if nights else []
        for row, nights in enumerate(segmented(cut))
    ]
