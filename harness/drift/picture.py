"""A drift run as one SVG file: the heatmap of layer by step, and how the residual stream's error grows.

Colour says error over budget on a logarithmic scale, and a wrong place has a frame and its number, so that nothing
hangs on colour alone. 62 layers by 12 steps fit one screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from minimax_m2.harness.drift.lockstep import ABSENT, Cell
from minimax_m2.harness.drift.record import Drift
from minimax_m2.harness.drift.running import PINNED, Found
from minimax_m2.harness.drift.tables import number

LEFT, TOP, WIDE, HIGH = 46, 118, 58, 11
CURVE_WIDE, CURVE_HIGH, GAP = 420, 240, 90
# Cividis at nine places: readable to every eye, dark to light with rising share.
COLOURS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55")
LOWEST, EDGE = -3.0, 0.0
WRONG, NOBODY = "#d62728", "#eeeeee"


def picture(drift: Drift) -> str:
    """The SVG's text; every text of the run is escaped, nothing is fetched."""
    columns = drift.columns
    layers = sorted({cell.layer for cell in drift.cells})
    high = max(HIGH, min(26, 600 // max(1, len(layers))))
    shown = [run for run in drift.runs if run.mode == PINNED]
    width = LEFT + WIDE * len(columns) + (GAP + CURVE_WIDE + 20 if shown else 20)
    height = max(TOP + high * len(layers) + 50, TOP + CURVE_HIGH + 90 if shown else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15" font-weight="600">{escape(_title(drift))}</text>',
        f'<text x="12" y="40" fill="#555555">{escape(_subtitle(drift))}</text>',
        *_heat(drift, columns, layers, high),
        *_legend(TOP + high * len(layers) + 16),
        *(line for run in shown for line in _growth(run, LEFT + WIDE * len(columns) + GAP)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _title(drift: Drift) -> str:
    wrong = drift.wrong
    if not drift.cells:
        return f"{drift.candidate} on {drift.model}"
    if not wrong:
        return f"{drift.candidate} on {drift.model}: all {drift.own} places are within their budgets"
    first = wrong[0]
    return f"{drift.candidate} on {drift.model}: layer {first.layer}, {first.step} is {number(first.used)} x its budget"


def _subtitle(drift: Drift) -> str:
    return f"{drift.tokens} tokens, {drift.dtype}, fed from {drift.reference}; error over budget, each step alone"


def _heat(drift: Drift, columns: Sequence[str], layers: Sequence[int], high: int) -> Iterator[str]:
    worst: dict[tuple[int, str], Cell] = {}
    for cell in drift.cells:
        if cell.place not in worst or cell.used > worst[cell.place].used:
            worst[cell.place] = cell
    for x, step in enumerate(columns):
        at = LEFT + WIDE * x + WIDE / 2
        yield f'<text transform="translate({at + 4:.0f},{TOP - 6}) rotate(-35)">{escape(step)}</text>'
    for y, layer in enumerate(layers):
        top = TOP + high * y
        label = "embed" if layer < 0 else "end" if layer == drift.layers else str(layer)
        yield f'<text x="{LEFT - 6}" y="{top + high / 2 + 4}" text-anchor="end" fill="#555555">{label}</text>'
        for x, step in enumerate(columns):
            if (found := worst.get((layer, step))) is not None:
                yield from _square(found, LEFT + WIDE * x, top, high)


def _square(cell: Cell, left: int, top: int, high: int) -> Iterator[str]:
    told = f"layer {cell.layer}, {cell.step}, {cell.phase}: {cell.outcome}, {number(cell.used)} x its budget"
    told += f"; {cell.explanation}" if cell.explanation else ""
    frame = f' stroke="{WRONG}" stroke-width="2"' if cell.is_wrong else ""
    fill = WRONG if cell.is_wrong else NOBODY if cell.outcome == ABSENT else colour(cell.used)
    yield (
        f'<rect x="{left + 1}" y="{top + 1}" width="{WIDE - 2}" height="{high - 2}" fill="{fill}"{frame}>'
        f"<title>{escape(told)}</title></rect>"
    )
    if cell.is_wrong:
        yield (
            f'<text x="{left + WIDE / 2}" y="{top + high / 2 + 4}" text-anchor="middle" fill="#ffffff" '
            f'font-weight="600" font-size="{min(11, high)}">{number(cell.used)}</text>'
        )


def colour(share: float) -> str:
    """The colour of a share of a budget, from a thousandth to the edge."""
    level = math.log10(share) if share > 0 else LOWEST
    place = (min(max(level, LOWEST), EDGE) - LOWEST) / (EDGE - LOWEST)
    return COLOURS[round(place * (len(COLOURS) - 1))]


def _legend(top: int) -> Iterator[str]:
    for i, shade in enumerate(COLOURS):
        yield f'<rect x="{LEFT + 22 * i}" y="{top}" width="22" height="9" fill="{shade}"/>'
    right = LEFT + 22 * len(COLOURS)
    yield f'<text x="{LEFT}" y="{top + 21}" fill="#555555">0.001</text>'
    yield f'<text x="{right - 8}" y="{top + 21}" fill="#555555">1, the budget</text>'
    yield f'<rect x="{right + 80}" y="{top}" width="22" height="9" fill="{WRONG}"/>'
    yield f'<text x="{right + 106}" y="{top + 9}" fill="#555555">beyond it</text>'
    yield f'<rect x="{right + 170}" y="{top}" width="22" height="9" fill="{NOBODY}"/>'
    yield f'<text x="{right + 196}" y="{top + 9}" fill="#555555">not its step</text>'


def _growth(run: Found, left: int) -> Iterator[str]:
    """The error of the stream at each entry, and the band of right models; the last place is the logits."""
    known = [x for curve in (run.curve, run.low, run.high) for x in curve if x > 0]
    if not known:
        return
    floor, ceiling = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    last = max(1, len(run.curve) - 1)

    def at(index: int, value: float) -> tuple[float, float]:
        share = (math.log10(max(value, 10.0**floor)) - floor) / max(1, ceiling - floor)
        return left + CURVE_WIDE * index / last, TOP + CURVE_HIGH * (1 - share)

    points = [i for i, value in enumerate(run.curve) if value > 0]
    band = [at(i, run.high[i]) for i in points] + [at(i, run.low[i]) for i in reversed(points)]
    yield f'<text x="{left}" y="{TOP - 14}" font-weight="600">error of the residual stream, experts given</text>'
    for power in range(floor, ceiling + 1):
        y = at(0, 10.0**power)[1]
        yield f'<line x1="{left}" x2="{left + CURVE_WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555555">1e{power}</text>'
    yield f'<polygon points="{_points(band)}" fill="#c3b369" fill-opacity="0.35"/>'
    own = [at(i, run.curve[i]) for i in points]
    shade = COLOURS[0] if run.leaves is None else WRONG
    yield f'<polyline points="{_points(own)}" fill="none" stroke="{shade}" stroke-width="2"/>'
    for i, (x, y) in zip(points, own, strict=True):
        beyond = run.curve[i] > run.high[i]
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{WRONG if beyond else COLOURS[0]}"/>'
    every = max(1, last // 12)
    for i in range(0, last + 1, every):
        name, x = "logits" if i == last else str(i), at(i, 1)[0]
        yield f'<text x="{x:.1f}" y="{TOP + CURVE_HIGH + 16}" text-anchor="middle" fill="#555555">{name}</text>'
    yield f'<text x="{left}" y="{TOP + CURVE_HIGH + 34}" fill="#555555">entry of layer; band: right models</text>'


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
