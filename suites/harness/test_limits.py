"""Limits of what elements do together, against the covariance that a budget states, written out as a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.budget import Arithmetic, Budgeted, Shared
from minimax_m2.harness.limits import MODEL_ERROR, Limits, Together, limits
from minimax_m2.harness.quantiles import bernstein, chi_square_mean, two_sided_normal

ALPHA = 1e-3
EACH = ALPHA / 5
"""Each of the five tests has a fifth of the rate."""


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def budget(value: Tensor, sigma: Tensor | float, **more: object) -> Budgeted:
    spread = torch.as_tensor(sigma, dtype=torch.float64).expand(value.shape)
    given = {"bound": torch.full_like(value, 1e6)} | more
    return Budgeted(value=value, var=spread.square(), arithmetic=Arithmetic(), **given)  # type: ignore[arg-type]


def limited(expected: Budgeted, dtype: torch.dtype = torch.float64) -> Limits:
    return limits(expected, dtype, ALPHA)


def together(expected: Budgeted, dtype: torch.dtype = torch.float64) -> Together:
    found = limited(expected, dtype).together
    assert found is not None
    return found


def chi(dof: float, alpha: float) -> float:
    return float(chi_square_mean(torch.tensor([dof], dtype=torch.float64), alpha)[0])


def near(value: float | Tensor) -> object:
    # derived: sums of a few thousand float64 numbers
    return pytest.approx(float(value), rel=1e-9)


# -- each element ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 31])
def test_an_element_reaches_as_far_as_the_number_of_elements_says(count: int) -> None:
    value = drawn(1, count) + 3
    tau = two_sided_normal(EACH / count)
    assert torch.equal(limited(budget(value, 0.5)).element, torch.full_like(value, tau * 0.5))
    bound = torch.full_like(value, 0.125)
    assert torch.equal(limited(budget(value, 0.5, bound=bound)).element, bound)
    jump = torch.full_like(value, 0.25)
    expected = bernstein(torch.full_like(value, 0.5), jump, tau, EACH / count)
    assert torch.equal(limited(budget(value, 0.5, jump=jump)).element, expected)


def test_nothing_has_limits_too() -> None:
    for shape in ((0,), (3, 0), (0, 3)):
        found = limited(budget(torch.zeros(shape, dtype=torch.float64), 1.0))
        assert (found.element.shape, found.together) == (shape, None)
    assert limited(budget(torch.tensor(3.0, dtype=torch.float64), 1.0)).together is None


def test_what_the_budget_cannot_place_is_told_from_what_is_infinite() -> None:
    nan, inf = math.nan, math.inf
    value = torch.tensor([1.0, 1.0, 1.0, inf, nan, nan, nan], dtype=torch.float64)
    bound = torch.tensor([1.0, inf, nan, inf, 1.0, nan, inf], dtype=torch.float64)
    told = [False, True, True, False, False, False, True]
    assert limited(budget(value, 1.0, bound=bound)).open_end.tolist() == told


# -- which elements count --------------------------------------------------------------------------------------------


def test_32_elements_with_noise_have_aggregates() -> None:
    sigma = torch.ones(40, dtype=torch.float64)
    sigma[32:] = 0
    assert together(budget(drawn(2, 40), sigma)).mask[0].tolist() == [True] * 32 + [False] * 8
    sigma[31:] = 0
    assert limited(budget(drawn(2, 40), sigma)).together is None


def test_a_step_that_one_kernel_in_64_makes_counts_and_a_rarer_one_does_not() -> None:
    jump = torch.ones(40, dtype=torch.float64)
    jump[:3] = torch.tensor([7.5, 8.0, 8.5])
    assert together(budget(drawn(3, 40), 1.0, jump=jump)).mask[0].tolist() == [True, True, False] + [True] * 37


@pytest.mark.parametrize("shape, rows", [((512, 512), 512), ((1023, 512), 512), ((2, 2**18 + 1), 1), ((40, 1), 40)])
def test_a_large_output_is_judged_by_rows_evenly_spaced(shape: tuple[int, int], rows: int) -> None:
    numbers = torch.arange(shape[0], dtype=torch.float64)[:, None].expand(shape)
    found = together(budget(numbers, 1.0))
    kept = found._matrix(numbers)[:, 0].tolist()
    last = 0 if rows == 1 else shape[0] - 1
    assert (found.mask.shape, kept[0], kept[-1]) == ((rows, shape[1]), 0, last)
    assert {b - a for a, b in pairwise(kept)} <= {1, 2}


def test_what_is_no_number_is_left_to_the_test_of_each_element() -> None:
    sigma = torch.ones(2, 40, dtype=torch.float64)
    sigma[0, 0] = 0
    value = drawn(4, 2, 40)
    found = together(budget(value, sigma))
    for place, judges in (((0, 0), True), ((1, 0), False)):
        got = value.clone()
        got[place] = math.inf
        assert found.can_judge(got) == judges


@pytest.mark.parametrize(
    "shape, tests",
    [
        ((32, 31), {"mean", "column", "gain"}),
        ((31, 32), {"mean", "row", "gain"}),
        ((2, 64), {"mean", "row", "gain"}),
        ((1, 64), {"mean", "gain"}),
    ],
)
def test_rows_and_columns_of_32_are_tested_where_there_are_several(shape: tuple[int, int], tests: set[str]) -> None:
    value = drawn(5, *shape) + 3
    assert set(together(budget(value, 1.0)).judge(value, ())[0]) == tests


# -- how far they reach ----------------------------------------------------------------------------------------------


def test_independent_errors_have_the_quantiles_of_their_numbers() -> None:
    rows, columns = 33, 40
    value, z = drawn(6, rows, columns) + 3, drawn(7, rows, columns)
    found, mean = together(budget(value, 0.5)).judge(value + 0.5 * z, ())
    square, direction = z.square(), value / value.norm()
    wider = 1 + MODEL_ERROR
    assert mean == near(square.mean())
    assert found == {
        "mean": near(square.mean() / (wider * chi(rows * columns, EACH))),
        "row": near(square.mean(1).max() / (wider * chi(columns, EACH / rows))),
        "column": near(square.mean(0).max() / (wider * chi(rows, EACH / columns))),
        "gain": near((z * direction).sum().abs() / two_sided_normal(EACH)),
    }


def test_a_reference_of_zeros_has_no_gain() -> None:
    assert "gain" not in together(budget(torch.zeros(40, dtype=torch.float64), 1.0)).judge(drawn(8, 40), ())[0]


def covariance(own: Tensor, coef: Tensor, label: Tensor) -> Tensor:
    """Of errors that are their own in part, and share ``coef`` with all of one label."""
    same = label.flatten()[:, None] == label.flatten()[None]
    return own.flatten().diag() + coef.flatten()[:, None] * coef.flatten()[None] * same


BY_ROW = torch.tensor([0, 0, 1, 2])[:, None].expand(4, 40)
IN_FOURS = (torch.arange(160) // 4).view(4, 40)


@pytest.mark.parametrize("label", [BY_ROW, IN_FOURS], ids=("by row", "in fours"))
def test_shared_errors_have_the_degrees_of_freedom_of_their_covariance(label: Tensor) -> None:
    value, z = drawn(9, 4, 40) + 3, drawn(10, 4, 40)
    coef, own = value / 8, torch.full_like(value, 0.25)
    expected = budget(value, own.sqrt(), shared=(Shared(-1, coef, label),))
    sigma = (own + coef.square()).sqrt()
    matrix = covariance(own / sigma**2, coef / sigma, label)
    one = chi(1, EACH)

    def heaviest(elements: Tensor) -> float:
        """The largest part of some elements' variance that one error has."""
        sums = torch.zeros(160, dtype=torch.float64)
        part = (coef / sigma).square() * elements
        return float(sums.index_add(0, label.flatten(), part.flatten()).max() / elements.sum())

    most = heaviest(torch.ones_like(value))
    quantile = max(chi(z.numel() ** 2 / float(matrix.square().sum()), EACH), 1 + most * (one - 1))
    direction = (value / sigma) / (value / sigma).norm()
    reach = two_sided_normal(EACH) * float(direction.flatten() @ matrix @ direction.flatten()) ** 0.5
    found, mean = together(expected).judge(value + sigma * z, ())
    assert found["mean"] == near(mean / ((1 + MODEL_ERROR) * quantile))
    assert found["gain"] == near(float((z * direction).sum().abs()) / reach)
    by_row = []
    for row in range(4):
        part = slice(40 * row, 40 * (row + 1))
        alone = heaviest((torch.arange(4) == row)[:, None].expand(4, 40).double())
        own_dof = 40**2 / float(matrix[part, part].square().sum())
        limit = max(chi(own_dof, EACH / 4), 1 + alone * (chi(1, EACH / 4) - 1))
        by_row.append(float(z[row].square().mean()) / ((1 + MODEL_ERROR) * limit))
    assert found["row"] == near(max(by_row))


def test_one_shared_error_that_dominates_has_the_tail_of_a_single_square() -> None:
    value = drawn(11, 2, 40) + 3
    rows = torch.arange(2)[:, None].expand(2, 40)
    own, coef = rows.double(), 1.0 - rows
    found, mean = together(budget(value, own, shared=(Shared(-1, coef, rows),))).judge(value + 1, ())
    # Half of all elements have one error: four degrees of freedom, but half of one square's tail reaches further.
    assert chi(80**2 / (40**2 + 40), EACH) < 1 + (chi(1, EACH) - 1) / 2
    assert found["mean"] == near(mean / ((1 + MODEL_ERROR) * (1 + (chi(1, EACH) - 1) / 2)))


def test_numbers_that_repeat_err_alike() -> None:
    value = (drawn(12, 1, 40) + 3).expand(4, 40) * torch.tensor([[1.0], [2.0], [1.0], [-1.0]], dtype=torch.float64)
    z = drawn(13, 4, 40)
    found, mean = together(budget(value, 1.0)).judge(value + z, ())
    # Four of each significand: 160^2 / (40 * 4^2).
    assert found["mean"] == near(mean / ((1 + MODEL_ERROR) * chi(40, EACH)))
    direction = value / value.norm()
    reach = float(direction.abs().sum(0).square().sum()) ** 0.5 * two_sided_normal(EACH)
    assert found["gain"] == near(float((z * direction).sum().abs()) / reach)


def test_steps_have_heavier_tails_than_noise() -> None:
    value, z = drawn(14, 2, 40) + 3, drawn(15, 2, 40)
    jump = torch.full_like(value, 1.5)
    found, mean = together(budget(value, 0.5, jump=jump)).judge(value + 0.5 * z, ())
    # A step of three deviations has a kurtosis of nine.
    assert found["mean"] == near(mean / ((1 + MODEL_ERROR) * chi(80 / (1 + 9 / 2) ** 2, EACH)))
    direction = value / value.norm()
    step = (3 * direction.abs()).amax()
    reach = bernstein(torch.tensor(1.0, dtype=torch.float64), step, two_sided_normal(EACH), EACH)
    assert found["gain"] == near((z * direction).sum().abs() / reach)


def test_errors_behind_a_contraction_over_few_terms_line_up_in_their_row() -> None:
    value, z = drawn(16, 3, 40) + 3, drawn(17, 3, 40)
    few = torch.full_like(value, 0.5**2 / 8**0.5)
    found, mean = together(budget(value, 0.5, limited=few)).judge(value + 0.5 * z, ())
    # Eight terms: a row of 40 adds 40^2 / 8 to the 40 of its own.
    assert found["mean"] == near(mean / ((1 + MODEL_ERROR) * chi(120**2 / (3 * (40 + 40**2 / 8)), EACH)))
    inflated = (1 + 4 * 40 / 8) ** 0.5
    direction = value / value.norm()
    assert found["gain"] == near((z * direction).sum().abs() / (two_sided_normal(EACH) * inflated))


def test_a_direction_that_no_error_reaches_allows_none() -> None:
    value = torch.ones(1, 40, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(20)[None]
    expected = budget(value, 0.0, shared=(Shared(-1, sign, torch.zeros(1, 40, dtype=torch.long)),))
    assert together(expected).judge(value + 0.5 * sign, ())[0]["gain"] == 0
    assert together(expected).judge(value + 0.5, ())[0]["gain"] == math.inf


@pytest.mark.parametrize("size, held", [(0.1, False), (4.0, True)])
def test_rows_of_the_same_numbers_may_share_what_each_has_for_itself(size: float, held: bool) -> None:
    value = (drawn(18, 1, 40) + 3).expand(20, 40)
    coef, label = value / 4, torch.arange(20)[:, None].expand(20, 40)
    expected = budget(value, 0.1, shared=(Shared(-1, coef, label),))
    sigma = (0.01 + coef.square()).sqrt()
    direction = (value / sigma) / (value / sigma).norm()
    variance = (0.1 / sigma * direction).abs().sum(0).square().sum()
    part = (coef / sigma * direction).sum(1)
    strict, alike = (variance + part.square().sum()).sqrt(), (variance + part.sum().square()).sqrt()
    found = together(expected).judge(value + size * coef, ())[0]["gain"]
    stray = (size * coef / sigma * direction).sum().abs()
    assert found == near(stray / (two_sided_normal(EACH) * (alike if held else strict)))


# -- what is known of the last rounding ------------------------------------------------------------------------------


def test_the_last_rounding_is_known_where_the_budget_holds_nothing_else() -> None:
    value = 1 + (torch.arange(40, dtype=torch.float64)[None] + 0.45) * 2.0**-7
    last = value.to(torch.bfloat16).double() - value
    var = torch.full_like(value, 2.0**-16 / 3)
    var[0, :6] *= torch.tensor([1.05, 1.15, 1.5, 2.5, 0.5, 1.0], dtype=torch.float64)
    error = last[0, 6:10].square()
    assert bool((error > 1.2 * var[0, 6:10]).all())
    var[0, 6:10] = error * torch.tensor([1.0, 1 + 5e-10, 1 + 2e-9, 1.5], dtype=torch.float64)
    known = together(budget(value, var.sqrt()), torch.bfloat16)._drift * var.sqrt()
    told = [True, False, False, False, True, True, True, True, False, False] + [True] * 30
    # derived: a root, a quotient and a product in float64
    assert known[0].tolist() == pytest.approx(torch.where(torch.tensor(told), last[0], 0.0).tolist(), rel=1e-12)


@pytest.mark.parametrize("name", ["mean", "row", "column", "gain"])
def test_what_emulated_kernels_do_is_no_alarm(name: str) -> None:
    value = drawn(19, 40, 40) + 3
    z = {
        "mean": torch.full_like(value, 1.15),
        "row": torch.ones_like(value),
        "column": torch.ones_like(value),
        "gain": torch.full_like(value, 0.15),
    }[name]
    if name != "gain":
        z = z * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(20)
    if name == "row":
        z[3] *= 1.8
    elif name == "column":
        z[:, 3] *= 1.8
    got = value + z
    judged = together(budget(value, 1.0)).judge
    assert 1 < judged(got, ())[0][name] < 2
    for kernels in ([lambda: got], [lambda: value, lambda: got], [lambda: got, lambda: value]):
        assert judged(got, kernels)[0][name] <= 1, "the best of them counts"
    assert judged(got, [lambda: value])[0][name] > 1


def test_no_kernel_is_emulated_where_nothing_is_amiss() -> None:
    made = list[int]()

    def kernel() -> Tensor:
        made.append(1)
        return value

    value = drawn(20, 40, 40) + 3
    kernels: list[Callable[[], Tensor]] = [kernel]
    assert max(together(budget(value, 1.0)).judge(value + drawn(21, 40, 40), kernels)[0].values()) <= 1
    assert made == []
