"""Times are of the quietest round, of the faster call, on memory that was poisoned first."""

from __future__ import annotations

import statistics
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from minimax_m2.harness import timing
from minimax_m2.harness.op import find_op
from minimax_m2.harness.provider import from_object
from minimax_m2.harness.providers.plain import plain
from minimax_m2.harness.timing import _sampled, actions


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still unless an action moves it."""
    found = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def test_a_disturbed_round_is_not_what_is_reported(clock: SimpleNamespace) -> None:
    calls = iter(range(10**6))

    def action() -> None:
        # Another process takes the processor in the first round of two calls and in the last one.
        clock.now += 2**-10 if 4 <= next(calls) < 14 else 2**-8

    assert statistics.median(_sampled(action, 0.03)) == 2**-10


def test_a_slow_call_is_made_twice_only(clock: SimpleNamespace) -> None:
    made = []

    def action() -> None:
        made.append(1)
        clock.now += 1.0

    assert _sampled(action, 0.03) == [1.0]
    assert len(made) == 2


def test_an_out_variant_is_timed_on_poisoned_outputs() -> None:
    seen: list[Tensor] = []

    def into(gate_up: Tensor, out: Tensor) -> None:
        seen.append(out.clone())

    op = find_op("swiglu")
    both = from_object(SimpleNamespace(swiglu=plain().functions("swiglu"), swiglu_out=into), name="both")
    (first, _), (second, action) = actions(op, op.case(T=3), both)
    action()
    assert (first, second) == ("swiglu", "swiglu_out")
    assert bool(torch.isnan(seen[0]).all())
