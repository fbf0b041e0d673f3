"""A sum is graded by what another order of its ranks moves: nothing, roundings, or the result."""

from __future__ import annotations

from typing import Any

import pytest

from minimax_m2.harness.collective_order import SUMS, order_grades
from minimax_m2.harness.relay import Relay
from minimax_m2.reference.communicator import Communicator, Threads


def grades(ranks: int, relay: Any = Relay) -> set[tuple[str, str]]:
    found = Threads(ranks).run(lambda rank: order_grades(relay(rank)))
    return {(each["repeated"], each["turned"]) for told in found for each in told.values()}


def test_two_parts_have_one_sum_whoever_brings_them() -> None:
    assert grades(2) == {("bits", "bits")}


@pytest.mark.parametrize("ranks", [3, 4, 7])
def test_more_parts_keep_the_budget_of_any_order(ranks: int) -> None:
    assert grades(ranks) == {("bits", "budget")}


class Forgetful(Relay):
    """Brings half of its part."""

    def call(self, kind: str, payload: Any, label: str) -> Any:
        return super().call(kind, payload / 2 if self.rank == 0 else payload, label)


def test_a_sum_that_lacks_a_part_is_wrong() -> None:
    assert grades(3, Forgetful) == {("wrong", "wrong")}


class Wavering(Relay):
    """Adds in another order at every second call, as sums by atomic additions do."""

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self.calls = 0

    def call(self, kind: str, payload: Any, label: str) -> Any:
        self.calls += 1
        parts = super().call("all_gather", payload[None], label)
        order = [1, 2, 0] if self.calls % 2 else [0, 1, 2]
        return parts[order[0]] + parts[order[1]] + parts[order[2]]


def test_a_sum_that_wavers_keeps_no_bits_when_it_is_repeated() -> None:
    assert len(SUMS) == 3
    assert {repeated for repeated, _ in grades(3, Wavering)} == {"budget"}
