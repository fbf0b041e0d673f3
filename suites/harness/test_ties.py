"""Which sets of experts are right when scores nearly tie, and which never are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimax_m2.harness import ties
from minimax_m2.harness.budget import Arithmetic, Budgeted
from minimax_m2.harness.compare import ALPHA, Comparison, Mismatch, compare
from minimax_m2.harness.op import find_op
from minimax_m2.harness.quantiles import two_sided_normal
from minimax_m2.harness.ties import Choice, implausible, judge_ids

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


def test_without_a_flip_nothing_of_the_budget_is_used() -> None:
    assert share([[2, 0, 1]] * 3) == 0


def test_all_experts_are_right_and_so_is_none() -> None:
    assert share([[5, 1, 0, 2, 4, 3]] * 3) == 0
    assert judge_ids(torch.full((3, 3), -1), scores(), valid=0).tests == {"element": 0.0}
    assert judge_ids(torch.zeros(0, 3, dtype=torch.int32), scores(SCORES[:0]), valid=0).tests == {}


def test_without_a_bound_a_gap_reaches_as_far_as_two_scores_err_together() -> None:
    sigma = 1e-4
    loose = Budgeted(SCORES, torch.full_like(SCORES, sigma**2), torch.full_like(SCORES, torch.inf), Arithmetic())
    tau = two_sided_normal(ALPHA / (5 * SCORES.numel()))
    # derived: a dozen float64 operations
    assert share([[0, 1, 3]] * 3, selection=loose) == pytest.approx(1e-3 / (2 * tau * sigma), rel=1e-9)


def test_the_pair_that_no_budget_excuses_decides() -> None:
    value = torch.tensor([[0.5, 0.6, 0.65, 0.7]], dtype=torch.float64)
    bound = torch.tensor([[0.3, 0.0, 0.0, 0.2]], dtype=torch.float64)
    # Scores 0 and 3 may lie anywhere near; that 2 is above 1 is certain.
    assert share([[0, 1]], 1, Budgeted(value, bound.square(), bound, Arithmetic())) == torch.inf


@pytest.mark.parametrize("times, passed", [(0.5, True), (1.0, True), (1.5, False), (2.5, False)])
def test_an_explanation_is_given_for_what_is_wrong_alone(times: float, passed: bool) -> None:
    # Dyadic numbers: the share is exact.
    selection = scores(torch.tensor([[1.0, 1.0, 0.5, 0.5 - 0.25 * times]], dtype=torch.float64), 0.125)
    found = judge_ids(torch.tensor([[0, 1, 3]]), selection, valid=1)
    assert (found.utilisation, found.passed, found.notes == [], found.elements) == (times, passed, passed, 3)
    assert found.worst == Mismatch((0,), 0.5 - 0.25 * times, 0.5, 0.25)


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
    [
        ([0, 1, 1], "token 1 chose an expert twice: ids [0, 1, 1]"),
        ([0, 0, 1], "token 1 chose an expert twice: ids [0, 0, 1]"),
        ([0, 1, 6], "token 1 has ids [0, 1, 6], not all within 0..5"),
        ([0, 1, -1], "token 1 has ids [0, 1, -1], not all within 0..5"),
    ],
)
def test_the_first_malformed_ids_are_told(row: list[int], note: str) -> None:
    found = judge_ids(torch.tensor([[0, 1, 2], row, row[::-1]]), scores(), valid=3)
    assert (found.utilisation, found.notes, found.elements) == (torch.inf, [note], 9)


def test_rows_behind_num_valid_are_minus_one() -> None:
    assert share([[0, 1, 2], [-1] * 3, [-1] * 3], valid=1) <= 1
    four = scores(SCORES[:1].expand(4, 6))
    found = judge_ids(torch.tensor([[0, 1, 2], [-1] * 3, [-1, -1, 2], [0, 1, 2]]), four, valid=1)
    assert (found.utilisation, found.notes) == (
        torch.inf,
        ["token 2 lies behind num_valid=1 but has ids [-1, -1, 2]; expected -1"],
    )


def test_a_wrong_choice_is_explained_by_token_experts_gap_and_budget() -> None:
    assert judge_ids(torch.tensor([[0, 1, 2], [0, 1, 2], [0, 4, 1]]), scores(), valid=3).notes == [
        "token 2 chose expert 4 (score 0.1) and left out expert 2 (score 0.5)",
        "gap 0.4, budget 0.002",
        "chosen ids [0, 1, 4]",
    ]


NAN = float("nan")


@pytest.mark.parametrize(
    "weights, ids",
    [([NAN, 0.5], [0, 7]), ([0.5, NAN], [7, 0]), ([0.0, 0.0], [-1, -1]), ([0.5, NAN], [-1, 0])],
)
def test_a_token_of_nan_scores_may_say_so_or_choose_nobody(weights: list[float], ids: list[int]) -> None:
    rows = torch.tensor([False, True, True])
    assert not implausible(torch.tensor([[0.5, 0.5], weights, weights]), torch.tensor([[0, 1], ids, ids]), rows, 8)


@pytest.mark.parametrize(
    "weights, ids",
    [([0.5, 0.25], [0, 7]), ([0.5, 0.25], [-1, 0]), ([NAN, NAN], [0, 8]), ([NAN, NAN], [-2, 0])],
)
def test_the_first_token_that_seems_to_have_chosen_among_nan_is_told(weights: list[float], ids: list[int]) -> None:
    rows = torch.tensor([False, False, True, True])
    some, other = (
        torch.tensor([[0.5, 0.5], [NAN, 0.5], weights, weights]),
        torch.tensor([[0, 1], [0, 1], ids, ids[::-1]]),
    )
    told = implausible(some, other, rows, 8)
    assert told == (
        f"token 2 has NaN among its scores, but ids {ids} and weights {weights}; "
        "expected a NaN weight, ids of -1, or a ValueError that names NaN"
    )


# -- weights and ids together ----------------------------------------------------------------------------------------

DTYPES = {"weights": torch.float32, "ids": torch.int64}


def choice(value: Tensor, *, top_k: int, valid: int, weight: float = 0.5, bound: float = 1e-3) -> Choice:
    """Every chosen expert weighs the same; rows of padding weigh 0."""

    def weigh(ids: Tensor) -> Budgeted:
        rows = torch.arange(len(ids))[:, None] < valid
        return scores(torch.where(rows, torch.full(ids.shape, weight, dtype=torch.float64), 0.0), bound)

    return Choice(find_op("routing"), DTYPES, scores(value), weigh, top_k, valid)


FOUR = choice(SCORES[:1].expand(4, 6), top_k=3, valid=3)
IDS = torch.tensor([[0, 1, 2]] * 3 + [[-1] * 3])
WEIGHTS = torch.tensor([[0.5] * 3] * 3 + [[0.0] * 3])


def test_a_right_choice_passes_in_silence() -> None:
    ids, weights = FOUR.judge((WEIGHTS, IDS))
    assert (ids.output, weights.output) == ("ids", "weights")
    assert (ids.utilisation, ids.notes, weights.utilisation, weights.notes) == (0, [], 0, [])


def test_ids_that_nobody_may_follow_are_judged_alone_and_others_beside_their_weights() -> None:
    malformed, wrong = IDS.clone(), IDS.clone()
    malformed[0, 0], wrong[0, 0] = 6, 5
    assert FOUR.shapes == {"weights": (4, 3), "ids": (4, 3)}
    assert [found.output for found in FOUR.judge((WEIGHTS, malformed))] == ["ids"]
    ids, weights = FOUR.judge((WEIGHTS, wrong))
    assert (ids.passed, weights.passed) == (False, True)


def test_a_wrong_weight_is_told_with_its_token_expert_and_tests() -> None:
    many = choice(SCORES[:1].expand(16, 6), top_k=3, valid=16)
    ids, weights = torch.tensor([[0, 1, 2]] * 16), torch.full((16, 3), 0.5)
    weights[2, 1] += 1.5e-3
    _, found = many.judge((weights, ids))
    assert {name for name in found.tests if found.tests[name] > 0} > {"element"}
    assert found.notes == [
        "token 2, ids [0, 1, 2]: actual weight 0.50150001, expected 0.5 for expert 1, budget 0.001, "
        "element 1.5 x its limit"
    ]
    weights[2, 1] = 0.9
    assert ", ".join(many.judge((weights, ids))[1].notes).count("x its limit") > 1
    assert set(many.judge((weights, ids), suspect="weights")[1].tests) == {"element"}


@pytest.mark.parametrize("weight, strays", [(-0.25, True), (1.25, True), (0.0, False), (1.0, False), (NAN, False)])
def test_weights_that_the_budget_cannot_place_are_nan_or_numbers_up_to_the_largest(weight: float, strays: bool) -> None:
    open_end = choice(SCORES[:1].expand(4, 6), top_k=3, valid=3, bound=torch.inf)
    weights = WEIGHTS.clone()
    weights[1, 2] = weights[2, 0] = weight
    ids, found = open_end.judge((weights, IDS))
    assert (ids.passed, found.passed) == (True, not strays)
    if strays:
        told = f"token 1, whose scores may all be 0, has weights [0.5, 0.5, {weight}]; expected NaN or 0..1"
        assert (found.output, found.notes, found.elements) == ("weights", [told], 12)


def test_a_weight_beyond_the_largest_is_judged_by_its_budget_where_it_has_one() -> None:
    heavy = choice(SCORES, top_k=3, valid=3, weight=2.5)
    assert heavy.judge((torch.full((3, 3), 2.5), IDS[:3]))[1].passed


def test_ids_and_weights_share_the_rate_of_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = list[float]()

    def counted(output: str, actual: Tensor, expected: Budgeted, alpha: float, *, hasty: bool) -> Comparison:
        spent.append(alpha)
        return compare(output, actual, expected, alpha, hasty=hasty)

    def chosen(ids: Tensor, selection: Budgeted, *, valid: int, alpha: float) -> Comparison:
        spent.append(alpha)
        return judge_ids(ids, selection, valid=valid, alpha=alpha)

    monkeypatch.setattr(ties, "compare", counted)
    monkeypatch.setattr(ties, "judge_ids", chosen)
    FOUR.judge((WEIGHTS, IDS), alpha=1e-4)
    assert spent == [5e-5, 5e-5]


def test_the_perfect_answer_is_the_best_experts_and_padding() -> None:
    shuffled = choice(SCORES[:1, [3, 1, 5, 0, 4, 2]].expand(4, 6), top_k=2, valid=3)
    weights, ids = shuffled.perfect()
    assert (weights.dtype, ids.dtype) == tuple(DTYPES.values())
    assert ids.tolist() == [[3, 1]] * 3 + [[-1, -1]]
    assert weights.tolist() == [[0.5, 0.5]] * 3 + [[0.0, 0.0]]


def corrupted(value: list[list[float]], *, top_k: int, valid: int) -> dict[str, list[list[int]]]:
    """Wrong ids by kind."""
    made = choice(torch.tensor(value, dtype=torch.float64), top_k=top_k, valid=valid).corruptions()
    return {kind: outputs[1].tolist() for kind, outputs in made if kind.startswith("ids:")}


def test_ids_are_corrupted_in_the_middle_row() -> None:
    right = [[0, 1, 2]] * 4 + [[-1] * 3]
    assert corrupted([[0.9, 0.8, 0.7, 0.1, 0.2, 0.3]] * 5, top_k=3, valid=4) == {
        "ids:twice": [*right[:2], [1, 1, 2], *right[3:]],
        "ids:other": [*right[:2], [0, 1, 3], *right[3:]],
        "ids:behind": [[6] * 3] * 5,
    }
    assert set(corrupted([[0.9, 0.8, 0.1]], top_k=2, valid=1)) == {"ids:twice", "ids:other", "ids:behind"}
    assert corrupted([[0.9, 0.8, 0.1]] * 2, top_k=2, valid=0) == {}
    assert set(corrupted([[0.9, 0.1]], top_k=1, valid=1)) == {"ids:other"}, "one expert, the first, everywhere"
    nearly = [[1.0, 0.5, 0.5 - 2.0**-20]]
    assert "ids:other" not in corrupted(nearly, top_k=2, valid=1), "the last of a token's experts is exchanged"


@pytest.mark.parametrize(
    "best, worst, tells",
    [
        (1.0, 1.0 - 1 / 255.5, True),
        (1.0, 1.0 - 1 / 256, False),
        (-1.0, -1.5, True),
        (1.5 * 2.0**-120, 0.0, True),
        (2.0**-120, 0.0, False),
    ],
)
def test_an_expert_is_exchanged_for_one_that_is_told_from_it(best: float, worst: float, tells: bool) -> None:
    assert ("ids:other" in corrupted([[best, worst]], top_k=1, valid=1)) == tells


def test_weights_are_corrupted_beside_right_ids() -> None:
    kinds = [kind for kind, (_, ids) in FOUR.corruptions() if torch.equal(ids, IDS)]
    assert kinds == ["weights:zeros", "weights:rows", "weights:row"]
    assert {kind.partition(":")[2] for kind, _ in FOUR.corruptions()} <= FOUR.kinds
