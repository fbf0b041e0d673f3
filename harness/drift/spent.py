"""What a run took: seconds, and the largest resident set of the process, over all its parts."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

# What getrusage counts the resident set in.
UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds on the wall, the largest resident set of any part in bytes, and in how many parts it ran."""

    seconds: float = 0.0
    peak_bytes: int = 0
    parts: int = 0

    def __str__(self) -> str:
        parts = f" in {self.parts} parts" if self.parts > 1 else ""
        return f"{self.seconds:.0f} s{parts}, at most {self.peak_bytes / 1e9:.1f} GB resident"


NOTHING = Spent()


class Meter:
    """Counts from where it is made; ``before`` is what earlier parts of the run took."""

    def __init__(self) -> None:
        self.before = NOTHING
        self._start = time.perf_counter()

    @property
    def spent(self) -> Spent:
        """So much up to now."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
        return Spent(
            seconds=self.before.seconds + time.perf_counter() - self._start,
            peak_bytes=max(self.before.peak_bytes, peak),
            parts=self.before.parts + 1,
        )
