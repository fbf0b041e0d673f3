"""Time calls on a GPU: one CUDA graph of many calls on rotated arguments, replayed between events."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from minimax_m2.harness.cuda_graph import captured, on_a_stream, replay_seconds

# Distinct bytes that one replay touches: several times the second-level cache of any GPU, so that each call is cold.
ROTATED_BYTES = 200_000_000
MOST_SETS = 64
FEWEST_CALLS = 24
REPLAYS = (7, 60)


def sets_for(bytes_of_a_call: int) -> int:
    """How many sets of arguments to rotate over so that no call finds its inputs in the cache."""
    return max(1, min(MOST_SETS, math.ceil(ROTATED_BYTES / max(bytes_of_a_call, 1))))


def is_cold(bytes_of_a_call: int) -> bool:
    """Whether the sets together are so large that no call finds its inputs in the cache."""
    return sets_for(bytes_of_a_call) * bytes_of_a_call >= ROTATED_BYTES


def replayed(
    calls: Sequence[Callable[[], object]], *, budget: float = 0.0, replays: int | None = None
) -> list[float]:  # fmt: skip
    """Seconds a call, one figure a replay, within about ``budget`` seconds of replays.

    Calls in which ranks wait for each other name the number of ``replays``: each rank's clock would choose its own.

    Raises whatever capture raises for a call that waits for the device: such a call cannot serve a captured graph.
    """
    rounds = math.ceil(FEWEST_CALLS / len(calls))
    on_a_stream(lambda: [call() for call in calls])
    graph, _ = captured(lambda: [call() for _ in range(rounds) for call in calls])
    replay_seconds(graph, 1)
    if replays is None:
        replays = max(REPLAYS[0], min(REPLAYS[1], int(budget / max(replay_seconds(graph, 1), 1e-6))))
    return [replay_seconds(graph, 1) / (rounds * len(calls)) for _ in range(replays)]
