"""Whether a commit is as slow as the bad end or as the good one: Wald's sequential test on pairs of times.

Machines drift by more than commits differ, so a commit is timed beside the good end, in turn, and only the ratio of
each pair counts. Pairs are taken until the likelihood of one end is so many times that of the other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from minimax_m2.harness.paired import interval

ERROR = 0.005
"""How often one decision may be wrong, either way."""
FEWEST_PAIRS, MOST_PAIRS = 24, 60
# The ends are timed until so much of their effect is sure: a commit that is held to less takes far more pairs.
SURE = 0.75

Pair = Callable[[], float]
"""Times both once, in turn, and gives the logarithm of the commit's time over the good end's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """How far the ends lie apart, as logarithms of time.

    effect  what a commit like the bad end is held to: the lower end of the effect's interval
    seen    the median effect
    spread  standard deviation of one pair
    """

    effect: float
    seen: float
    spread: float


class EndsAlike(RuntimeError):
    """Good and bad do not differ; the message says by how much they were seen to."""


def measured_ends(pair: Pair, *, most: int = MOST_PAIRS) -> Ends:
    """Time the bad end beside the good one. Raises EndsAlike where no slowdown is shown."""
    logs = [pair() for _ in range(FEWEST_PAIRS)]
    seen, low, high = interval(logs)
    while (low <= 0 or low < SURE * seen) and len(logs) < most:
        logs.append(pair())
        seen, low, high = interval(logs)
    if low <= 0:
        raise EndsAlike(
            f"the bad end takes {math.exp(seen):.3f} times as long as the good one, somewhere in "
            f"{math.exp(low):.3f}..{math.exp(high):.3f}: no slowdown is shown"
        )
    # Around the median, robustly: a pause of the machine must not hide every effect.
    spread = 1.4826 * statistics.median(abs(x - seen) for x in logs)
    return Ends(effect=low, seen=seen, spread=max(spread, low / 100))


@dataclass(slots=True)
class Sequential:
    """One decision between two ends."""

    ends: Ends
    most: int = MOST_PAIRS
    taken: int = 0
    evidence: float = field(default=0.0)

    def add(self, log_ratio: float) -> bool | None:
        """True for slow as the bad end, False for fast as the good one, None where more pairs are needed."""
        self.taken += 1
        step = self.ends.effect * (log_ratio - self.ends.effect / 2) / self.ends.spread**2
        # One wild pair must not decide alone.
        limit = math.log((1 - ERROR) / ERROR)
        self.evidence += max(-limit / 2, min(limit / 2, step))
        return None if abs(self.evidence) < limit else self.evidence > 0

    @property
    def is_spent(self) -> bool:
        return self.taken >= self.most


def is_slow(pair: Pair, ends: Ends, *, most: int = MOST_PAIRS) -> bool | None:
    """Take pairs until they decide; None where ``most`` of them do not."""
    test = Sequential(ends, most=most)
    while not test.is_spent:
        decided = test.add(pair())
        if decided is not None:
            return decided
    return None
