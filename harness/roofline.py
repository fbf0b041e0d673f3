"""The measured roof: how fast this machine moves bytes of a working set and multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from minimax_m2.harness.graph_timing import replayed, sets_for
from minimax_m2.harness.op import Cost

# From a first-level cache to memory; a case is held against the next larger working set.
SIZES = (1 << 15, 1 << 18, 1 << 21, 1 << 24, 1 << 27)
MATRIX = 1024
GPU_MATRIX = 8192


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


@cache
def measure_gpu() -> Roof:
    """The roof of the current GPU, once a process: copies that find nothing in its cache, and square products."""
    bandwidth = {}
    for size in SIZES:
        pairs = [
            (torch.ones(size // 8, device="cuda"), torch.empty(size // 8, device="cuda")) for _ in range(sets_for(size))
        ]
        copies = [lambda s=source, t=target: t.copy_(s) for source, target in pairs]
        bandwidth[size] = size / min(replayed(copies, budget=0.05))
    flops = {}
    for name in ("float32", "bfloat16"):
        # Zeros and ones draw less power than data does, and run faster.
        a = torch.randn(GPU_MATRIX, GPU_MATRIX, device="cuda").to(getattr(torch, name))
        flops[name] = 2 * GPU_MATRIX**3 / min(replayed([lambda m=a: torch.mm(m, m)], budget=0.1))  # type: ignore[misc]
    return Roof(bandwidth, flops)


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
