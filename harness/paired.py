"""Time two providers in interleaved blocks and give the ratio of their times with its confidence interval.

A machine's speed drifts by more than what two kernels differ by, so neither time means much alone. In a block A, B, B,
A run within milliseconds: a linear drift cancels. The ratio is the median over blocks; its interval is that of the
median by order statistics, which asks nothing of the distribution.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import asdict, dataclass, field
from math import comb
from pathlib import Path

import torch

from minimax_m2.harness.record import Record
from minimax_m2.harness.stopwatch import Clock, Timed

SCHEMA = 1
CONFIDENCE = 0.95
# A run of calls lasts so long, in seconds: far beyond what the clock resolves, far below what a scheduler grants.
RUN = 2e-4
# Fewer blocks have no interval at this confidence; more than so many say nothing new.
FEWEST, MOST = 12, 400
# Other work on more than so many cores stretches what several threads do together: such a ratio is shown as no result.
BUSY = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Times of A and B from the same blocks, in seconds a call. ``ratio`` is B over A: above 1, A is faster.

    low, high  95 % confidence interval of the ratio
    """

    ratio: float
    low: float
    high: float
    blocks: int
    calls: tuple[str, str]
    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def is_level(self) -> bool:
        """Whether the interval contains 1: neither is shown to be faster."""
        return self.low <= 1.0 <= self.high


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median of a sample and the order statistics that enclose the true one with at least 95 % confidence.

    Raises ValueError for fewer than six values: even their extremes do not.
    """
    ordered, n = sorted(values), len(values)
    # At most so many of n values lie on the wrong side of the true median.
    below, tail = 0, 0.0
    while (tail := tail + comb(n, below) / 2**n) <= (1 - CONFIDENCE) / 2:
        below += 1
    if below == 0:
        raise ValueError(f"{n} values have no {CONFIDENCE:.0%} interval of their median; take at least 6")
    return statistics.median(ordered), ordered[below - 1], ordered[n - below]


def paired(a: Timed, b: Timed, *, seconds: float = 2.0, clock: Clock = time.monotonic) -> Pairing:
    """Time both in blocks of A, B, B, A for so long, or for the fewest blocks that have an interval."""
    names = a.start(), b.start()
    a_calls, b_calls = calls_a_sample(a), calls_a_sample(b)
    ratios: list[float] = []
    times: tuple[list[float], list[float]] = ([], [])
    start = clock()
    while len(ratios) < FEWEST or (clock() - start < seconds and len(ratios) < MOST):
        # Every other block runs the other way round, so that nobody always follows a pause.
        order = "ABBA" if len(ratios) % 2 == 0 else "BAAB"
        block: dict[str, list[float]] = {"A": [], "B": []}
        for turn in order:
            timed, calls = (a, a_calls) if turn == "A" else (b, b_calls)
            block[turn].append(timed.sample(calls) / calls)
        ratios.append(sum(block["B"]) / sum(block["A"]))
        times[0].extend(block["A"])
        times[1].extend(block["B"])
    ratio, low, high = interval(ratios)
    return Pairing(
        ratio=ratio, low=low, high=high, blocks=len(ratios), calls=names, a=tuple(times[0]), b=tuple(times[1])
    )


def alone(timed: Timed, *, seconds: float, clock: Clock = time.monotonic) -> tuple[str, list[float]]:
    """Time one for so long, or for the fewest samples: the form that was faster, and seconds a call."""
    name, start = timed.start(), clock()
    calls = calls_a_sample(timed)
    samples: list[float] = []
    while len(samples) < FEWEST or (clock() - start < seconds and len(samples) < MOST):
        samples.append(timed.sample(calls) / calls)
    return name, samples


def calls_a_sample(timed: Timed) -> int:
    """How many calls last as long as a run should."""
    calls = 1
    while (taken := timed.sample(calls)) < RUN / 2 and calls < 1 << 20:
        calls = max(2 * calls, min(16 * calls, int(calls * RUN / max(taken, 1e-9))))
    return calls


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRecord:
    """One comparison as a line of JSON: two records, each with verdict and time, and the ratio of the times.

    setting    the case fields that were set beside the shape's
    processes  1 where both ran in this process, 2 where each had its own
    others     how many cores other work took meanwhile: a kernel of several threads waits for each of them
    at_least   the ratio that was asked for, if any
    clocks     of a GPU right after: ``sm_mhz``, ``power_w`` and ``celsius``, where it tells
    """

    a: Record
    b: Record
    ratio: float
    low: float
    high: float
    blocks: int
    processes: int
    others: float
    setting: dict[str, int | str]
    date: str
    at_least: float | None = None
    clocks: dict[str, int] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> PairRecord:
        """Read a line back. Raises ValueError naming what is not a comparison of this schema."""
        found = json.loads(line)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA or "ratio" not in found:
            raise ValueError(f"line {line[:60]!r} is no comparison of schema {SCHEMA}")
        a, b = (Record.from_json(json.dumps(found.pop(side))) for side in ("a", "b"))
        return cls(a=a, b=b, **found)


def clocks(device: str) -> dict[str, int]:
    """What a GPU's clocks and power are now; nothing of other devices, or where no library of the driver tells."""
    if device != "gpu":
        return {}
    try:
        return {
            "sm_mhz": int(torch.cuda.clock_rate()),
            "power_w": round(torch.cuda.power_draw() / 1000),
            "celsius": int(torch.cuda.temperature()),
        }
    except (ModuleNotFoundError, RuntimeError):
        return {}


class Others:
    """How many cores other work keeps busy, ours being this process and those it has waited for; 0 but on Linux."""

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> float:
        """Mean since the start."""
        (clock, busy), (then, before) = self._now(), self._start
        return max(0.0, (busy - before) / max(clock - then, 1e-9))

    @staticmethod
    def _now() -> tuple[float, float]:
        stat = Path("/proc/stat")
        if not stat.is_file():
            return time.monotonic(), 0.0
        # user, nice, system, idle, iowait, irq, softirq, steal
        spent = [int(word) / os.sysconf("SC_CLK_TCK") for word in stat.read_text().split()[1:9]]
        own = os.times()
        mine = own.user + own.system + own.children_user + own.children_system
        return time.monotonic(), sum(spent) - spent[3] - spent[4] - mine


def read_pairs(path: Path) -> list[PairRecord]:
    """All comparisons of a ``.jsonl`` file."""
    return [PairRecord.from_json(line) for line in path.read_text().splitlines() if line]
