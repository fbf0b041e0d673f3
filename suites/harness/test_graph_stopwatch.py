"""A stopwatch on graphs, which are played on the host here: what it rotates over, chooses and returns."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness import graph_stopwatch
from minimax_m2.harness.case import Case
from minimax_m2.harness.graph_stopwatch import REPLAY, GraphStopwatch, Uncapturable, brought
from minimax_m2.harness.graph_timing import MOST_SETS, is_cold, sets_for
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import Provider, from_object
from minimax_m2.harness.providers.plain import plain

OP = find_op("rms_norm")
CASES = [OP.case(T=3, H=64, seed=seed) for seed in range(2)]


class Graph:
    """What was run to capture it, run again at each replay into the memory of the first time."""

    def __init__(self, run: Callable[[], list[Any]], clock: SimpleNamespace) -> None:
        self.run, self.clock, self.returned = run, clock, run()

    def replay(self) -> float:
        before = self.clock.now
        for memory, value in zip(self.returned, self.run(), strict=True):
            for target, source in zip(
                graph_stopwatch.as_outputs(memory), graph_stopwatch.as_outputs(value), strict=True
            ):
                target.copy_(source)
        return self.clock.now - before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A device whose graphs run here; its clock is moved by the calls alone."""
    found = SimpleNamespace(now=0.0)

    def captured(run: Callable[[], list[Any]]) -> tuple[Graph, list[Any]]:
        graph = Graph(run, found)
        return graph, graph.returned

    monkeypatch.setattr(graph_stopwatch, "captured", captured)
    monkeypatch.setattr(graph_stopwatch, "on_a_stream", lambda run: run())
    monkeypatch.setattr(
        graph_stopwatch, "replay_seconds", lambda graph, replays: sum(graph.replay() for _ in range(replays))
    )
    monkeypatch.setattr(graph_stopwatch, "torch_device", lambda device: "cpu")
    return found


def timed(clock: SimpleNamespace, seconds: float, seen: list[Tensor] | None = None, **more: Any) -> Provider:
    """rms_norm in so many seconds, which notes its inputs, and what else is given."""
    right = plain().functions("rms_norm")
    assert right is not None

    def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        clock.now += seconds
        if seen is not None:
            seen.append(x)
        return right(x, weight, eps=eps)

    return from_object(SimpleNamespace(rms_norm=rms_norm, **more), name="timed")


def test_a_call_takes_its_share_of_a_replay(clock: SimpleNamespace) -> None:
    watch = GraphStopwatch(timed(clock, 2.0**-10), OP, CASES)
    assert watch.start() == "rms_norm"
    assert watch.sample(1) == 2.0**-10
    assert watch.sample(1000) == 1000 * 2.0**-10


def test_no_call_of_a_round_meets_the_memory_of_another(clock: SimpleNamespace) -> None:
    seen: list[Tensor] = []
    watch = GraphStopwatch(timed(clock, REPLAY, seen), OP, CASES)
    watch.start()
    seen.clear()
    watch.sample(1)
    assert len({x.data_ptr() for x in seen}) == sets_for(OP.cost(CASES[0]).bytes) == MOST_SETS


def test_outputs_are_those_of_each_draw(clock: SimpleNamespace) -> None:
    watch = GraphStopwatch(timed(clock, REPLAY), OP, CASES)
    watch.start()
    right = plain().functions("rms_norm")
    assert right is not None
    for draw in range(2):
        given = watch.given(draw)
        (actual,) = watch.outputs(draw)
        assert torch.equal(actual, right(given["x"], given["weight"], eps=given["eps"]))


def test_outputs_that_a_replay_leaves_alone_are_not_numbers(clock: SimpleNamespace) -> None:
    def rms_norm_out(x: Tensor, weight: Tensor, y: Tensor, *, eps: float) -> None:
        clock.now += 2.0**-20

    watch = GraphStopwatch(timed(clock, 1.0, rms_norm_out=rms_norm_out), OP, CASES)
    assert watch.start() == "rms_norm_out"
    assert bool(watch.outputs(0)[0].isnan().all())


def test_a_form_in_place_is_timed_and_judged_on_inputs_that_are_put_back(clock: SimpleNamespace) -> None:
    def in_place(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        clock.now += 2.0**-20
        return x.mul_(2)

    watch = GraphStopwatch(timed(clock, 1.0, rms_norm_in_place=in_place), OP, CASES)
    assert watch.start() == "rms_norm_in_place"
    watch.sample(50)
    assert torch.equal(watch.outputs(1)[0], watch.given(1)["x"] * 2)


def test_who_cannot_be_captured_is_named(clock: SimpleNamespace) -> None:
    def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    watch = GraphStopwatch(from_object(SimpleNamespace(rms_norm=rms_norm), name="waits"), OP, CASES)
    with pytest.raises(
        Uncapturable, match="waits raised RuntimeError: operation not permitted when stream is capturing"
    ):
        watch.start()


def test_small_cases_stay_in_the_cache_and_large_ones_do_not() -> None:
    assert not is_cold(1000)
    assert is_cold(4_000_000)
    assert is_cold(10**9)


def test_a_large_tensor_is_moved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_stopwatch, "SHARED", 1024)
    large, small = torch.zeros(1024), torch.zeros(8)
    moves: list[Tensor] = []

    def moved(value: Tensor, device: str) -> Tensor:
        moves.append(value)
        return value.clone()

    monkeypatch.setattr(graph_stopwatch, "moved", moved)
    first, second = (brought({"large": large, "small": small}, "cpu") for _ in range(2))
    assert first["large"] is second["large"]
    assert first["small"] is not second["small"]
    assert len(moves) == 3


def test_draws_of_a_case_are_built_as_the_case_says(clock: SimpleNamespace) -> None:
    case = Case({**CASES[0], "seed": 5})
    assert torch.equal(
        GraphStopwatch(timed(clock, REPLAY), OP, [case]).given(0)["x"], OP.inputs(case, _bits(case))["x"]
    )


def _bits(case: Case) -> Any:
    from minimax_m2.harness.bits import Bits

    return Bits(case)
