"""Where the time of timed calls goes, kernel by kernel, as torch's profiler sees it; a trace for chrome://tracing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from minimax_m2.harness.stopwatch import Timed

# Kernels that are shown, by time; the trace has all of them.
SHOWN = 8
CALLS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kind of kernel of a GPU, or operator of a CPU, in a few timed calls."""

    name: str
    launches: int
    microseconds: float
    share: float


def profiled(timed: Timed, device: str, trace: Path) -> list[Kernel]:
    """Run what is timed under the profiler, write its trace, and list what took longest.

    The profiler slows what it watches: times are for shares, not for records.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "gpu" else [])]
    # Started once before, since the first start loads the driver's tracer.
    with profile(activities=activities):
        timed.sample(1)
    with profile(activities=activities) as watched:
        timed.sample(CALLS)
    trace.parent.mkdir(parents=True, exist_ok=True)
    watched.export_chrome_trace(str(trace))
    place = "CUDA" if device == "gpu" else "CPU"
    rows = [
        (event.key, event.count, event.self_device_time_total if device == "gpu" else event.self_cpu_time_total)
        for event in watched.key_averages()
        if event.device_type.name == place
    ]
    whole = sum(time for _, _, time in rows) or 1.0
    longest = sorted(rows, key=lambda row: row[2], reverse=True)[:SHOWN]
    return [Kernel(name=name, launches=n, microseconds=time, share=time / whole) for name, n, time in longest if time]
