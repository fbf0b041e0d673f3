"""How many replays time a call: as many as a budget pays for, or as many on all ranks."""

from __future__ import annotations

import pytest

from minimax_m2.harness import graph_timing
from minimax_m2.harness.graph_timing import FEWEST_CALLS, REPLAYS, replayed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of a replay, and of every one that was timed: no GPU, a graph that takes as long as it is told."""
    seconds = [1e-3]

    def replay_seconds(graph: object, replays: int) -> float:
        seconds.append(seconds[0])
        return seconds[0]

    monkeypatch.setattr(graph_timing, "on_a_stream", lambda run: run())
    monkeypatch.setattr(graph_timing, "captured", lambda run: (None, run()))
    monkeypatch.setattr(graph_timing, "replay_seconds", replay_seconds)
    return seconds


def test_a_budget_pays_for_replays_between_two_bounds(clock: list[float]) -> None:
    counts = {}
    for clock[0] in (1e-6, 1e-3, 1.0):
        counts[clock[0]] = len(replayed([int], budget=0.02))
    assert counts == {1e-6: REPLAYS[1], 1e-3: 20, 1.0: REPLAYS[0]}


@pytest.mark.parametrize("seconds", [1e-6, 1e-3, 1.0])
def test_ranks_replay_as_often_as_each_other_whatever_their_clocks_say(clock: list[float], seconds: float) -> None:
    clock[0] = seconds
    assert len(replayed([int], replays=9)) == 9
    # One that warms up, and no other that some ranks might leave out.
    assert len(clock) - 1 == 9 + 1


def test_a_figure_is_of_one_call_of_a_graph_of_several(clock: list[float]) -> None:
    assert set(replayed([int] * 5, replays=2)) == {clock[0] / (5 * -(-FEWEST_CALLS // 5))}
