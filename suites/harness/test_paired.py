"""Interleaved blocks: a planted slowness is found, an even match stays level, drift and noise notwithstanding."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import comb, sin
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minimax_m2.harness.expectation import Outputs
from minimax_m2.harness.op import find_op
from minimax_m2.harness.paired import FEWEST, MOST, alone, interval, paired
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.stopwatch import RUNS, Stopwatch


class Machine:
    """A clock that only calls advance, and a speed that drifts with it."""

    def __init__(self, speed: Callable[[float], float]) -> None:
        self.now, self.speed = 0.0, speed

    def clock(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds / self.speed(self.now)


class Kernel:
    """A call of so many seconds on a machine."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        self.machine, self.seconds = machine, seconds

    def start(self) -> str:
        return "kernel"

    def sample(self, calls: int) -> float:
        start = self.machine.now
        self.machine.passes(calls * self.seconds)
        return self.machine.now - start

    def outputs(self, draw: int) -> Outputs:
        return ()


# Steady; slowing down to a half over the run; swinging by a third with a period that no block has.
SPEEDS: list[Callable[[float], float]] = [
    lambda now: 1.0,
    lambda now: 1.0 / (1.0 + now),
    lambda now: 1.0 + 0.3 * sin(now * 977.0),
]
speeds = pytest.mark.parametrize("speed", SPEEDS, ids=["steady", "slowing", "swinging"])


@speeds
def test_a_kernel_that_is_twice_as_slow_is_found(speed: Callable[[float], float]) -> None:
    machine = Machine(speed)
    found = paired(Kernel(machine, 1e-5), Kernel(machine, 2e-5), seconds=1.0, clock=machine.clock)
    assert found.low > 1.5
    assert found.high < 2.5
    assert not found.is_level


@speeds
def test_a_kernel_against_itself_is_level(speed: Callable[[float], float]) -> None:
    machine = Machine(speed)
    found = paired(Kernel(machine, 1e-5), Kernel(machine, 1e-5), seconds=1.0, clock=machine.clock)
    # derived: a linear drift cancels in a block up to the rounding of its times
    assert found.is_level or found.high - found.low < 2**-20
    assert found.a != found.b or speed is SPEEDS[0]


def test_a_ratio_is_the_second_over_the_first() -> None:
    machine = Machine(lambda now: 1.0)
    assert paired(Kernel(machine, 3e-3), Kernel(machine, 1e-3), seconds=0.0, clock=machine.clock).high < 1


def test_blocks_stop_when_the_time_is_over_but_not_before_they_have_an_interval() -> None:
    machine = Machine(lambda now: 1.0)
    fewest = paired(Kernel(machine, 1.0), Kernel(machine, 1.0), seconds=0.0, clock=machine.clock)
    most = paired(Kernel(machine, 1e-6), Kernel(machine, 1e-6), seconds=1e9, clock=machine.clock)
    assert (fewest.blocks, most.blocks) == (FEWEST, MOST)
    assert len(most.a) == len(most.b) == 2 * MOST


def test_alone_names_the_form_and_gives_seconds_a_call() -> None:
    machine = Machine(lambda now: 1.0)
    name, samples = alone(Kernel(machine, 0.5), seconds=0.0, clock=machine.clock)
    assert name == "kernel"
    assert samples == [0.5] * FEWEST


@pytest.mark.parametrize("n", [6, 7, 12, 30, 31, 400])
def test_the_interval_has_its_confidence_and_no_narrower_one_does(n: int) -> None:
    _, low, high = interval([float(i) for i in range(n)])
    below = int(low)
    assert high == n - 1 - below
    tail = sum(comb(n, k) for k in range(below + 1))
    assert 2 * (tail - comb(n, below)) / 2**n <= 0.05
    assert 2 * tail / 2**n <= 0.05 < 2 * (tail + comb(n, below + 1)) / 2**n


def test_five_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="5 values have no 95% interval"):
        interval([1.0] * 5)


CASES = [find_op("kv_cache").case(T=3, seed=seed).json for seed in range(2)]


def counting(seen: list[Any]) -> Stopwatch:
    """A stopwatch on rms_norm that notes the inputs of each call; the clock shows how often it was read."""

    def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
        seen.append(x)
        return x * 2

    reads = iter(range(10**6))
    provider = from_object(SimpleNamespace(rms_norm=rms_norm), name="twice")
    cases = [find_op("rms_norm").case(T=2, seed=seed).json for seed in range(3)]
    return Stopwatch(provider, cases, clock=lambda: float(next(reads)))


def test_every_call_meets_other_inputs_than_the_one_before() -> None:
    seen: list[Any] = []
    watch = counting(seen)
    assert watch.start() == "rms_norm"
    seen.clear()
    assert watch.sample(7) == 1.0
    # One call warms up.
    assert len(seen) == 1 + 7 * RUNS
    assert all(a is not b for a, b in pairwise(seen))


def test_the_outputs_are_those_of_the_timed_calls() -> None:
    seen: list[Any] = []
    watch = counting(seen)
    watch.start()
    watch.sample(3)
    made = [output for draw in range(3) for output in watch.outputs(draw)]
    # The last calls met the draws in turn, whichever came first.
    assert all(any(torch.equal(output, x * 2) for x in seen[-3:]) for output in made)
    assert len({output.data_ptr() for output in made}) == 3


def test_what_a_call_writes_is_put_back_before_the_next_sample() -> None:
    from minimax_m2.harness.providers.plain import plain

    watch = Stopwatch(plain(), CASES)
    watch.start()
    before = watch.outputs(0)[0].clone()
    watch.sample(5)
    assert torch.equal(watch.outputs(0)[0].view(torch.uint8), before.view(torch.uint8))


def test_the_faster_form_of_a_call_is_timed() -> None:
    import time

    def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
        time.sleep(0.02)
        return x

    def rms_norm_out(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, *, eps: float) -> None:
        y.copy_(x)

    provider = from_object(SimpleNamespace(rms_norm=rms_norm, rms_norm_out=rms_norm_out), name="both")
    assert Stopwatch(provider, [find_op("rms_norm").case(T=2).json]).start() == "rms_norm_out"
