"""The page: one file that says what moved, why, and what to run next. It fetches nothing and may be mailed.

What it shows is packed into it (``packing.py``); its scripts and styles stand in ``page/``, with uPlot for the lines.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from minimax_m2.harness.history import events as events_module
from minimax_m2.harness.history import steps, watch
from minimax_m2.harness.history.causes import Cause
from minimax_m2.harness.history.events import Event
from minimax_m2.harness.history.other_bits import METRIC, STEADY
from minimax_m2.harness.history.packing import packed
from minimax_m2.harness.history.panel import BALANCE, Floats, Panel, changed
from minimax_m2.harness.history.series import Series
from minimax_m2.harness.history.tonight import is_regression
from minimax_m2.harness.history.weight import shares
from minimax_m2.harness.peers import BUILT_IN, PEERS
from minimax_m2.harness.provenance import commit

FOLDER = Path(__file__).with_name("page")
# What a command line is given is a commit and nothing else: records may come from anywhere.
COMMIT = re.compile(r"[0-9a-f]{7,40}")
SCRIPTS = ("data", "format", "events", "matrix", "series", "charts", "drift", "trust", "main")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a page shows beside the nights: drift runs as their JSON, scores, devices, levels, the detector's test."""

    drift: Sequence[Mapping[str, Any]] = ()
    trust: Sequence[Mapping[str, Any]] = ()
    devices: Sequence[Mapping[str, Any]] = ()
    levels: Sequence[Mapping[str, Any]] = ()
    selftest: Mapping[str, Any] = field(default_factory=dict)
    simulated: bool = False


def page(lanes: Sequence[tuple[Panel, Sequence[Event]]], extras: Extras | None = None) -> str:
    """HTML of all lanes. Raises ValueError for none: a page of nothing would look like a quiet night."""
    if not any(panel.nights for panel, _ in lanes):
        raise ValueError("no night is recorded; `m2check nightly add FILES` adds some")
    extra = extras or Extras()
    about = {
        "built": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "tool": commit(),
        "simulated": extra.simulated,
        "lanes": [_lane(panel) for panel, _ in lanes],
        "events": [event_row(panel, at, event) for at, (panel, found) in enumerate(lanes) for event in found],
        "silent": [line for at, (panel, _) in enumerate(lanes) for line in silent(panel, at, newest_date(lanes))],
        "thresholds": thresholds(),
        "drift": list(extra.drift),
        "trust": list(extra.trust),
        "devices": list(extra.devices),
        "levels": list(extra.levels),
        "selftest": dict(extra.selftest),
    }
    arrays = [array for panel, _ in lanes for array in _arrays(panel)]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((FOLDER / "page.html").read_text())
    return template.render(
        styles=[(FOLDER / name).read_text() for name in ("uPlot.min.css", "style.css")],
        scripts=[
            (FOLDER / "uPlot.iife.min.js").read_text(),
            *((FOLDER / f"{name}.js").read_text() for name in SCRIPTS),
        ],
        licence=(FOLDER / "uPlot.LICENSE.txt").read_text(),
        data=packed(about, arrays),
    )


def newest_date(lanes: Sequence[tuple[Panel, Sequence[Event]]]) -> str:
    """The newest night of any lane."""
    return max(night.date for panel, _ in lanes for night in panel.nights)


def _lane(panel: Panel) -> dict[str, Any]:
    last = panel.nights[-1].context
    base = _base(panel)
    # A page subtracts the corrected time's excess over its base from this: the roof of a night is that of its canary.
    fraction = [_median(row) for row in np.log(panel.roof_us) + panel.canary]
    fraction = [roof - at for roof, at in zip(fraction, base, strict=True)]
    return {
        "name": panel.lane,
        "host": last.get("host", ""),
        "nights": [[night.date, night.commit] for night in panel.nights],
        "ticks": [[n, text] for n in range(1, len(panel.nights)) if (text := _tick(panel, n))],
        "series": [
            [one.id, one.op, one.provider, one.device, one.variant, one.shape, one.case_id, one.clock,
             int(panel.intensity[row] >= BALANCE), round(base[row], 4), round(fraction[row], 4), round(weight, 5)]
            for row, (one, weight) in enumerate(zip(panel.series, shares(panel), strict=True))
        ],
        "samples": {row: list(times) for row, times in sorted(panel.samples.items())},
        "wrong": sorted({row for row, night in panel.wrong if night == len(panel.nights) - 1}),
    }  # fmt: skip


def _base(panel: Panel) -> list[float]:
    return [_median(row) for row in panel.own]


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else 0.0


def _arrays(panel: Panel) -> list[Floats]:
    """Logs: time over its median, ratio, share of the budget, [S, N] each; then the two canaries [2, N]."""
    own = panel.own - np.array(_base(panel))[:, None]
    speeds = np.log([[n.copy_gbps for n in panel.nights], [n.gemm_gflops for n in panel.nights]])
    middle = np.array([_median(row) for row in speeds])
    error = np.where(np.isfinite(panel.share), panel.error, np.nan)
    return [own, panel.log_ratio, error, speeds - middle[:, None]]


def _tick(panel: Panel, night: int) -> str:
    """What of machine, software and method is another than the night before."""
    old, new = panel.nights[night - 1].context, panel.nights[night].context
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    told = [f"{name} {old.get(name) or 'unknown'} to {new.get(name) or 'unknown'}" for name in names[:6]]
    methods = sum(changed(row, night) is not None for row in panel.methods)
    return ", ".join([*told, *([f"method of {methods} series"] if methods else [])])


def event_row(panel: Panel, lane: int, event: Event) -> dict[str, Any]:
    """An event as the page and the command line show it."""
    shape = shares(panel)
    weight = sum({panel.series[row].op: shape[row] for row in event.rows}.values())
    return {
        "number": event.number,
        "lane": lane,
        "metric": event.metric,
        "cause": event.ruling.cause.value,
        "rule": event.ruling.rule,
        "what": event.factor,
        "rows": event.rows,
        "night": event.night,
        "date": panel.nights[event.night].date,
        "told": panel.nights[event.told].date,
        "effect": round(event.effect, 5) if np.isfinite(event.effect) else None,
        "low": round(event.low, 5),
        "high": round(event.high, 5),
        "good": event.good,
        "bad": event.bad,
        "commits": event.commits,
        "looks": sorted({one.looks for one in event.moved}),
        "hashed": [event.evidence.hashed, event.evidence.series],
        "weight": round(min(1.0, weight), 4),
        "accepted": event.accepted,
        "regression": is_regression(event),
        "made_up": event.made_up.number if event.made_up else 0,
        "state": event.state,
        "text": event.text,
        "command": next_command(panel, event),
    }


def next_command(panel: Panel, event: Event) -> str:
    """What to paste: a bisect where a commit is to blame, else what looks closer."""
    one = panel.series[event.rows[0]] if event.rows else None
    if event.ruling.cause is Cause.WRONG and one is not None:
        return f"m2check repro {shlex.quote(one.case_id)}{_asked_for(one)}"
    if event.metric == METRIC and one is not None:
        return f"m2check run --op {shlex.quote(one.op)} --no-times{_asked_for(one)}"
    ends = [text.rstrip("+") for text in (event.good, event.bad)]
    if event.ruling.cause is Cause.CODE and one is not None and all(COMMIT.fullmatch(end) for end in ends):
        metric = "util" if event.metric == "error" else "latency"
        return f"m2check bisect commit --op {shlex.quote(one.op)} --metric {metric} --good {ends[0]} --bad {ends[1]}"
    if event.ruling.cause is Cause.HARDWARE:
        return "m2check doctor"
    if event.ruling.cause is Cause.NOISE and one is not None:
        return f"m2check nightly run --op {shlex.quote(one.op)} --budget 5"
    return f'm2check event {event.number} accept --reason "..."'


def _asked_for(one: Series) -> str:
    """The options that name a series' provider and variant."""
    known = one.provider in (*PEERS, *BUILT_IN)
    provider = f" --with {one.provider}" if known else f" --provider {shlex.quote(f'{one.provider}.py')}"
    return provider + (f" --variant {shlex.quote(one.variant)}" if one.variant else "")


def silent(panel: Panel, lane: int, newest: str) -> list[dict[str, Any]]:
    """What was measured before and is not now: silence is never green."""
    last = panel.nights[-1].date
    if last < newest:
        return [{"lane": lane, "text": f"nothing measured since {last}", "series": len(panel.series)}]
    gone = int((np.isfinite(panel.us).any(1) & ~np.isfinite(panel.us[:, -1])).sum())
    return [{"lane": lane, "text": f"not measured on {last}", "series": gone}] if gone else []


def thresholds() -> dict[str, Any]:
    """All that decides what the page tells."""
    return {
        "smallest step": f"{100 * steps.LEAST:.0f} %",
        "errors for suspicion": watch.SUSPECT_ERRORS,
        "false share (Benjamini-Hochberg)": watch.FALSE_SHARE,
        "nights looked back": watch.WINDOW,
        "re-runs agree from": f"half the step and {watch.AGREE_ERRORS:.0f} errors",
        "canary steps from": f"{100 * events_module.CANARY_LEAST:.0f} %",
        "bits are steady after": f"{STEADY} nights",
        "clip": f"{steps.CLIP:.0f} MAD around {steps.AROUND} nights",
        "shared factor from": f"{100 * events_module.SHARED:.0f} % of its series",
    }
