"""A wrong tensor is named by what it equals, and a right one by nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.explain import spans
from minimax_m2.harness.drift.faults import Fault, planted
from minimax_m2.harness.drift.lockstep import Cell, ranked
from minimax_m2.harness.drift.trajectory import Trajectory
from minimax_m2.harness.museum import right
from minimax_m2.harness.provider import from_object


def told(trajectory: Trajectory, candidate: Candidate, place: tuple[int, str]) -> str:
    calls = [call for call in trajectory.at(place) if call.phase == "prefill"]
    cell: Cell = ranked(trajectory.cells(candidate, calls))[0]
    return trajectory.explained(cell, candidate).explanation


@pytest.mark.parametrize("fault, explanation", [
    ("experts_exchanged", "y equals the reference after swapping experts 6 and 7"),
    ("one_expert_left_out", "y equals the reference without expert 3"),
    ("gate_and_up_exchanged", "y equals the reference with gate and up exchanged"),
    ("bias_ignored", "equals the reference without its bias"),
    ("not_renormalised", "equals the reference not renormalised"),
    ("logits_in_bfloat16", "is right for a kernel that rounds logits to bfloat16"),
    ("rows_moved_by_one", "y equals the reference after moving rows by 1"),
    ("heads_exchanged", "y equals the reference after swapping columns 512..575 and 576..639"),
    ("last_row_of_the_tile_stale", "y equals the reference after copying rows (62 from 61)"),
    ("column_dropped", "y is wrong in column 37 only"),
    ("position_ahead_by_one", "q equals the reference with every position ahead by one"),
    ("turned_the_other_way", "q equals the reference rotated the other way"),
    ("table_in_bfloat16", "q is right for a kernel that rounds cos_sin to bfloat16"),
    ("last_token_not_stored", "k_cache equals the reference with the last token not stored"),
    ("eps_too_large", "y equals the reference with eps=0.001"),
    ("one_plus_weight", "y equals the reference with 1 + weight"),
    ("values_in_e4m3", "y equals the reference with v_cache in e4m3"),
])  # fmt: skip
def test_a_fault_is_told_by_what_it_does(
    trajectory: Trajectory, clean: Candidate, faults: dict[str, Fault], fault: str, explanation: str
) -> None:
    one = faults[fault]
    assert told(trajectory, planted(clean, (2, one)), (2, one.step)) == explanation


@pytest.mark.parametrize("change, explanation", [
    (lambda y: -y, "y equals the reference with the sign changed"),
    (lambda y: y * 0, "y is zero throughout"),
    (lambda y: y * float("nan"), "y holds numbers that are none"),
    (lambda y: (y.double() * 1.25).to(y.dtype), "y equals the reference times 1.25"),
    (lambda y: y[:, torch.arange(256).roll(3)], "y equals the reference after moving columns by 3"),
    (lambda y: y[[1, 0, *range(2, len(y))]], "y equals the reference after swapping rows 0 and 1"),
])  # fmt: skip
def test_a_projection_is_told_by_what_was_done_to_it(
    trajectory: Trajectory, clean: Candidate, change: object, explanation: str
) -> None:
    def linear(x: Tensor, weight: Tensor, **out: object) -> Tensor:
        return change(right("linear")(x, weight, **out))  # type: ignore[operator]

    changed = from_object(SimpleNamespace(linear=linear), name="changed")
    assert told(trajectory, replace(clean, planted={(1, "o_proj"): changed}), (1, "o_proj")) == explanation


def test_noise_is_told_by_nothing(trajectory: Trajectory, clean: Candidate) -> None:
    def linear(x: Tensor, weight: Tensor, **out: object) -> Tensor:
        y = right("linear")(x, weight, **out)
        return y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)

    noisy = from_object(SimpleNamespace(linear=linear), name="noisy")
    assert told(trajectory, replace(clean, planted={(1, "o_proj"): noisy}), (1, "o_proj")) == ""


def test_long_lists_of_places_are_cut() -> None:
    assert spans([1, 2, 3, 7, 9, 10, 12, 14]) == "1..3, 7, 9..10, 12, ..."
