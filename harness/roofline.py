"""The measured roof: how fast this machine moves bytes of a working set and multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from minimax_m2.harness.graph_timing import is_cold, replayed, sets_for
from minimax_m2.harness.op import Cost

# From a first-level cache to memory; a case is held against the next larger working set.
SIZES = (1 << 15, 1 << 18, 1 << 21, 1 << 24, 1 << 27)
# A mixture's weights are gigabytes, and a GPU reads them faster than what fits four times into its cache.
GPU_SIZES = (*SIZES, 1 << 30)
MATRIX = 1024
GPU_MATRIX = 8192
# Dense flops that a multiprocessor's tensor cores do in a clock, by compute capability: with bf16, twice with e4m3.
TENSOR_FLOPS = {80: 2048, 90: 4096, 100: 8192}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What no program exceeds: bytes a second of the memory's clock and width, tensor flops by the fastest clock."""

    bandwidth: float
    flops: dict[str, float]


@dataclass(frozen=True, slots=True)
class Roof:
    """Bandwidth in bytes a second by working set, and flops a second by dtype name: what was measured.

    ceiling  what cannot be exceeded, None where the device does not tell
    """

    bandwidth: dict[int, float]
    flops: dict[str, float]
    ceiling: Ceiling | None = None

    def seconds(self, cost: Cost, dtype: str) -> float:
        """The least time of a case: its bytes at the bandwidth of their size, or its flops, whichever is longer."""
        sizes = sorted(self.bandwidth)
        size = next((s for s in sizes if s >= cost.bytes), sizes[-1])
        peak = self.flops.get(dtype, self.flops["float32"])
        return max(cost.bytes / self.bandwidth[size], cost.flops / peak)

    def impossible(self, cost: Cost, dtype: str, seconds: float) -> str:
        """Why no call of a case takes so little time, empty where one may.

        Bytes count where no cache can hold what calls rotate over, flops where tensor cores' are known for the dtype.
        """
        if self.ceiling is None:
            return ""
        if is_cold(cost.bytes) and seconds < cost.bytes / self.ceiling.bandwidth:
            rate, most = cost.bytes / seconds / 1e12, self.ceiling.bandwidth / 1e12
            return f"{cost.bytes} bytes in {seconds * 1e6:.4g} us are {rate:.3g} TB/s; the memory has {most:.3g}"
        peak = self.ceiling.flops.get(dtype)
        if peak is not None and seconds < cost.flops / peak:
            rate = cost.flops / seconds / 1e12
            return f"{cost.flops} flops in {seconds * 1e6:.4g} us are {rate:.4g} TFLOP/s; {peak / 1e12:.4g} are there"
        return ""


@cache
def measure_gpu() -> Roof:
    """The roof of the current GPU, once a process: copies and sums that find nothing in its cache, square products."""
    bandwidth = {}
    for size in GPU_SIZES:
        sets = range(sets_for(size))
        pairs = [(torch.ones(size // 8, device="cuda"), torch.empty(size // 8, device="cuda")) for _ in sets]
        copies = [lambda s=source, t=target: t.copy_(s) for source, target in pairs]
        # Reading alone is faster than copying, which turns the memory's bus round.
        sums = [partial(torch.sum, torch.cat(pair)) for pair in pairs]
        bandwidth[size] = size / min(*replayed(copies, budget=0.05), *replayed(sums, budget=0.05))
    square = 2 * GPU_MATRIX**3
    flops = {}
    for name in ("float32", "bfloat16"):
        # Zeros and ones draw less power than data does, and run faster.
        a = torch.randn(GPU_MATRIX, GPU_MATRIX, device="cuda").to(getattr(torch, name))
        flops[name] = square / min(replayed([lambda m=a: torch.mm(m, m)], budget=0.1))  # type: ignore[misc]
    if torch.cuda.get_device_capability() >= (8, 9):
        q, one = a.to(torch.float8_e4m3fn), torch.ones((), device="cuda")

        def product() -> object:
            scaled = torch.ops.aten._scaled_mm
            return scaled(q, q.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

        flops["float8_e4m3fn"] = square / min(replayed([product], budget=0.1))
    return Roof(bandwidth, flops, ceiling_of(torch.cuda.get_device_properties()))


def ceiling_of(properties: Any) -> Ceiling | None:
    """The ceiling of a GPU by its properties; None where they leave out clocks."""
    clock, memory = getattr(properties, "clock_rate", 0), getattr(properties, "memory_clock_rate", 0)
    if not clock or not memory:
        return None
    # Clocks in kHz; memory moves a bit a line on both edges.
    each = TENSOR_FLOPS.get(10 * properties.major + properties.minor)
    bf16 = 0.0 if each is None else each * properties.multi_processor_count * clock * 1e3
    flops = {"bfloat16": bf16, "float16": bf16, "float8_e4m3fn": 2 * bf16} if bf16 else {}
    return Ceiling(2 * memory * 1e3 * properties.memory_bus_width / 8, flops)


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
    progress("roof: multiplying int8")
    codes = torch.ones(MATRIX, MATRIX, dtype=torch.int8)
    flops["int8"] = 2 * MATRIX**3 / _best(lambda: torch._int_mm(codes, codes))
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
