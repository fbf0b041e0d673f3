"""Which sets of experts are right when scores nearly tie, and which never are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.budget import Arithmetic, Budgeted
from minimax_m2.harness.ties import judge_ids

# Expert 2 and 3 are 1e-3 apart; each score may err by 1e-3.
SCORES = torch.tensor([[0.9, 0.8, 0.5, 0.499, 0.1, 0.0]] * 3, dtype=torch.float64)


def scores(value: Tensor = SCORES, bound: float = 1e-3) -> Budgeted:
    spread = torch.full_like(value, bound)
    return Budgeted(value, spread.square(), spread, Arithmetic())


def share(ids: list[list[int]], valid: int = 3, selection: Budgeted | None = None) -> float:
    return judge_ids(torch.tensor(ids), selection or scores(), valid=valid).utilisation


@pytest.mark.parametrize("row", [[0, 1, 2], [2, 0, 1], [0, 1, 3]])
def test_a_set_within_the_budget_is_right_in_any_order(row: list[int]) -> None:
    assert share([row, row, row]) <= 1


def test_a_flip_uses_the_share_of_the_budget_that_the_gap_is() -> None:
    assert 0.49 < share([[0, 1, 3]] * 3) < 0.51


@pytest.mark.parametrize("row", [[0, 1, 4], [0, 2, 3], [3, 4, 5]])
def test_a_set_beyond_the_budget_is_wrong_in_any_token(row: list[int]) -> None:
    assert share([[0, 1, 2], [0, 1, 2], row]) > 1


def test_exact_ties_are_free_without_any_budget() -> None:
    tied = scores(torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64), 0.0)
    assert all(share([[i]], 1, tied) == 0 for i in range(3))


def test_without_a_budget_the_smallest_gap_is_wrong() -> None:
    assert share([[0, 1, 3]] * 3, selection=scores(bound=0.0)) == torch.inf


@pytest.mark.parametrize(
    "row, note",
    [([0, 1, 1], "chose an expert twice"), ([0, 1, 6], "not all within 0..5"), ([0, 1, -1], "not all within 0..5")],
)
def test_malformed_ids_are_told(row: list[int], note: str) -> None:
    found = judge_ids(torch.tensor([[0, 1, 2], row, [0, 1, 2]]), scores(), valid=3)
    assert not found.passed
    assert "token 1" in found.notes[0]
    assert note in found.notes[0]


def test_rows_behind_num_valid_are_minus_one() -> None:
    assert share([[0, 1, 2], [-1] * 3, [-1] * 3], valid=1) <= 1
    assert share([[0, 1, 2], [-1] * 3, [0, 1, 2]], valid=1) > 1


def test_a_wrong_choice_is_explained_by_token_experts_gap_and_budget() -> None:
    notes = " ".join(judge_ids(torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 4]]), scores(), valid=3).notes)
    assert "token 2 chose expert 4" in notes
    assert "left out expert 2" in notes
    assert "gap 0.4, budget 0.002" in notes
