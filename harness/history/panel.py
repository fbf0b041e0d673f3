"""The nights of one lane as arrays: rows are series, columns nights, NaN where nothing was measured."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minimax_m2.harness.history.index import Index, Row
from minimax_m2.harness.history.series import Series

Floats = NDArray[np.float64]
# A case at a roof is bound by what takes longer there: at fewer flops a byte than this, by memory.
BALANCE = 8.0
# An error of less than a thousandth of its budget is no error that anybody watches.
LEAST_SHARE = 1e-3
# What a point's context says beside machine and software: of the column, and of the op.
OF_A_POINT = ("commit", "committed", "height", "method")


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One column: a commit measured on one day. ``context`` is what machine and software were."""

    run: str
    commit: str
    height: int
    context: dict[str, str]
    copy_gbps: float
    gemm_gflops: float

    @property
    def date(self) -> str:
        return f"{self.run[:4]}-{self.run[4:6]}-{self.run[6:8]}"


@dataclass(frozen=True, slots=True)
class Again:
    """One re-run: log of the corrected time, and of the ratio to the accepted build or NaN."""

    time: float
    ratio: float


@dataclass(slots=True)
class Panel:
    """What was measured on a lane.

    us, roof_us, log_ratio, share  [S, N] time, roof, log of the time over the accepted build's, share of the budget
    kernels  [S, N] hash of the kernel's sources, "" where unknown
    methods  [S, N] hash of what draws an op's inputs and times it, "" where unknown
    bits     [S, N] hash of the outputs' bits, "" where unknown
    samples  raw times of the newest night in microseconds, by series
    again    what re-runs found, by (series, night)
    wrong    evidence of outcomes that are no pass, by (series, night)
    """

    lane: str
    series: list[Series]
    nights: list[Night]
    us: Floats
    roof_us: Floats
    log_ratio: Floats
    share: Floats
    kernels: NDArray[np.object_]
    methods: NDArray[np.object_]
    intensity: Floats
    again: dict[tuple[int, int], list[Again]] = field(default_factory=dict)
    wrong: dict[tuple[int, int], str] = field(default_factory=dict)
    bits: NDArray[np.object_] = field(default_factory=lambda: np.empty((0, 0), dtype=object))
    samples: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.bits.size:
            self.bits = np.full(self.us.shape, "", dtype=object)

    @property
    def own(self) -> Floats:
        """Log of the time."""
        return np.log(self.us)

    @property
    def canary(self) -> Floats:
        """Log of the machine's speed ``[S, N]`` over its median, as each series feels it; 0 where nobody asked."""
        speeds = np.log([[n.copy_gbps for n in self.nights], [n.gemm_gflops for n in self.nights]])
        with np.errstate(all="ignore"):
            middle = np.array([np.nanmedian(row) if np.isfinite(row).any() else 0.0 for row in speeds])
        relative = np.nan_to_num(speeds - middle[:, None])
        return relative[np.where(self.intensity < BALANCE, 0, 1)]

    @property
    def corrected(self) -> Floats:
        """Log of the time that the machine would have taken at its usual speed."""
        return self.own + self.canary

    @property
    def error(self) -> Floats:
        """Log of the share of the error budget."""
        return np.log(np.maximum(self.share, LEAST_SHARE))

    @property
    def fraction(self) -> Floats:
        """Share of the roof."""
        return self.roof_us / self.us


POINTS_OF_SERIES = "SELECT * FROM points WHERE series = ? AND run >= ? ORDER BY run, digest"
# What is only judged has no time to show, but where it was ever wrong it must not be silent.
SHOWN = "clock != '' OR id IN (SELECT series FROM points WHERE outcome NOT IN ('pass', 'unsupported'))"


def _lane(row: Row) -> str:
    return f"{row['chip']}, {row['threads']} threads" if row["device"] == "cpu" else str(row["chip"])


def panels(index: Index, *, since: str = "") -> Iterator[Panel]:
    """The panel of each lane, of nights from ``since`` (``20260131``) on."""
    known: dict[str, list[Row]] = defaultdict(list)
    for row in index.rows(f"SELECT * FROM series WHERE {SHOWN} ORDER BY op, provider, variant, shape, key"):
        known[_lane(row)].append(row)
    contexts = {row["id"]: json.loads(row["text"]) for row in index.rows("SELECT * FROM contexts")}
    for lane, rows in known.items():
        panel = _panel(index, lane, rows, contexts, since)
        if panel.nights:
            yield panel


def _panel(index: Index, lane: str, rows: list[Row], contexts: dict[int, dict[str, object]], since: str) -> Panel:
    names = Series.__slots__
    series = [Series(**{name: row[name] for name in names}) for row in rows]
    points = [(at, point) for at, row in enumerate(rows) for point in index.rows(POINTS_OF_SERIES, (row["id"], since))]
    columns: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for _, point in points:
        columns[_column(point, contexts)].append(point)
    order = sorted(columns, key=lambda column: min(point["run"] for point in columns[column]))
    nights = [_night(columns[column], contexts) for column in order]
    place = {column: n for n, column in enumerate(order)}
    shape = (len(series), len(nights))
    intensity = np.array([(row["flops"] or 0) / max(1, row["bytes"] or 1) for row in rows])
    us, roof_us, log_ratio, share = (np.full(shape, np.nan) for _ in range(4))
    kernels, methods = (np.full(shape, "", dtype=object) for _ in range(2))
    found = Panel(lane, series, nights, us, roof_us, log_ratio, share, kernels, methods, intensity)
    taken: dict[tuple[int, int], list[Row]] = defaultdict(list)
    again: list[tuple[tuple[int, int], Row]] = []
    for at, point in points:
        where = at, place[_column(point, contexts)]
        if point["purpose"] == "rerun":
            again.append((where, point))
        else:
            taken[where].append(point)
        if point["outcome"] not in ("pass", "unsupported"):
            found.wrong[where] = point["evidence"] or point["outcome"]
    for where, same in taken.items():
        found.us[where] = _median(same, "us")
        found.roof_us[where] = _median(same, "roof_us")
        found.log_ratio[where] = _median(same, "log_ratio")
        found.share[where] = max((p["utilisation"] for p in same if p["utilisation"] is not None), default=np.nan)
        found.kernels[where] = same[-1]["kernel"]
        found.methods[where] = str(contexts[same[-1]["context"]].get("method", ""))
        found.bits[where] = same[-1]["bits"]
        if where[1] == len(nights) - 1 and same[-1]["samples"]:
            found.samples[where[0]] = tuple(json.loads(same[-1]["samples"]))
    _forget_other_builds(found, {where: same[-1]["against"] for where, same in taken.items()})
    canary = found.canary
    for where, point in again:
        if point["us"] is not None:
            ratio = np.nan if point["log_ratio"] is None else point["log_ratio"]
            found.again.setdefault(where, []).append(Again(float(np.log(point["us"]) + canary[where]), float(ratio)))
    return found


def _forget_other_builds(panel: Panel, against: dict[tuple[int, int], str | None]) -> None:
    """A ratio to a build that was accepted before the newest one says nothing beside those to that."""
    newest: dict[int, str] = {}
    for (row, _), build in sorted(against.items()):
        newest[row] = build or newest.get(row, "")
    for (row, night), build in against.items():
        if build != newest[row]:
            panel.log_ratio[row, night] = np.nan


def _column(point: Row, contexts: dict[int, dict[str, object]]) -> tuple[str, str]:
    """The same commit twice on a day is one night, another commit of that day another."""
    return point["run"][:8], str(contexts[point["context"]].get("commit", ""))


def _night(points: list[Row], contexts: dict[int, dict[str, object]]) -> Night:
    context = contexts[points[-1]["context"]]
    height = context.get("height", 0)
    return Night(
        run=min(point["run"] for point in points),
        commit=str(context.get("commit", "")),
        height=height if isinstance(height, int) else 0,
        context={key: str(value) for key, value in context.items() if key not in OF_A_POINT},
        copy_gbps=_median(points, "copy_gbps"),
        gemm_gflops=_median(points, "gemm_gflops"),
    )


def _median(points: list[Row], name: str) -> float:
    found = [point[name] for point in points if point[name] is not None]
    return float(np.median(found)) if found else float("nan")


def changed(hashes: NDArray[np.object_], night: int) -> tuple[str, str] | None:
    """The hash of a row before a night and in it, where both are known and differ."""
    earlier, now = [one for one in hashes[:night] if one], hashes[night]
    return (earlier[-1], now) if earlier and now and earlier[-1] != now else None
