"""The measured roof: how fast this machine moves bytes of a working set and multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minimax_m2.harness.op import Cost

# From a first-level cache to memory; a case is held against the next larger working set.
SIZES = (1 << 15, 1 << 18, 1 << 21, 1 << 24, 1 << 27)
MATRIX = 1024


@dataclass(frozen=True, slots=True)
class Roof:
    """Bandwidth in bytes a second by working set, and flops a second by dtype name."""

    bandwidth: dict[int, float]
    flops: dict[str, float]

    def seconds(self, cost: Cost, dtype: str) -> float:
        """The least time of a case: its bytes at the bandwidth of their size, or its flops, whichever is longer."""
        size = next((s for s in SIZES if s >= cost.bytes), SIZES[-1])
        peak = self.flops.get(dtype, self.flops["float32"])
        return max(cost.bytes / self.bandwidth[size], cost.flops / peak)


def measure(progress: Callable[[str], None] = lambda text: None) -> Roof:
    """Measure copies of each working set (read and written bytes both count) and square products."""
    bandwidth = {}
    for size in SIZES:
        progress(f"roof: copying {size >> 10} KiB")
        source = torch.ones(size // 8, dtype=torch.float32)
        target = torch.empty_like(source)
        bandwidth[size] = size / _best(lambda s=source, t=target: t.copy_(s))  # type: ignore[misc]
    flops = {}
    for name in ("float32", "bfloat16"):
        progress(f"roof: multiplying {name}")
        a = torch.ones(MATRIX, MATRIX, dtype=getattr(torch, name))
        flops[name] = 2 * MATRIX**3 / _best(lambda m=a: torch.mm(m, m))  # type: ignore[misc]
    return Roof(bandwidth, flops)


def _best(action: Callable[[], object], budget: float = 0.06) -> float:
    """Least seconds of a call within ``budget`` seconds."""
    action()
    best, until = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < until:
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best
