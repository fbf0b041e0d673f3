"""CUDA graphs: warm a call up, capture it, time its replays on the device's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Returned = TypeVar("Returned")

# The device is kept busy for so many cycles while the host queues what is timed.
HEAD_START = 400_000


def on_a_stream(run: Callable[[], Returned]) -> Returned:
    """Run on a stream of its own, as what is captured later does: compilation and lazy set-up happen here."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        returned = run()
    torch.cuda.current_stream().wait_stream(stream)
    return returned


def captured(run: Callable[[], Returned]) -> tuple[torch.cuda.CUDAGraph, Returned]:
    """A graph of what a function launches, and what it returned meanwhile: memory that replays write.

    Raises what a capture raises where the function waits for the device.
    """
    graph = torch.cuda.CUDAGraph()
    # NCCL's watchdog asks for its events from a thread of its own, which is no part of what is captured.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        returned = run()
    return graph, returned


def replay_seconds(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """Seconds of so many replays on the device's clock."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(HEAD_START)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3
