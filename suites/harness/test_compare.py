"""Each test of the comparator fails alone on the error it is for, and holds on every correct kind of error.

Correct data are drawn from the very model that the budget states: independent, shared, low-rank and repeated errors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.budget import Arithmetic, Budgeted, Shared
from minimax_m2.harness.compare import ALPHA, Comparison, Mismatch, compare, exactly, within_codes
from minimax_m2.harness.groups import rows_alike
from minimax_m2.reference.composites import rms_normalise
from minimax_m2.reference.contract import rounded

ROWS, COLUMNS = 40, 48
Sample = tuple[Tensor, Budgeted]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed: int, *shape: int) -> Tensor:
    """Noise of a rounding: uniform, variance 1."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * 3**0.5


def budget(value: Tensor, var: Tensor | float, **more: object) -> Budgeted:
    spread = torch.as_tensor(var, dtype=torch.float64).expand(value.shape)
    return Budgeted(value, spread, torch.full_like(value, 100.0), Arithmetic(), **more)  # type: ignore[arg-type]


def independent(seed: int) -> Sample:
    value = drawn(seed, ROWS, COLUMNS) + 3
    return value + uniform(seed + 1, *value.shape), budget(value, 1.0)


def normal(seed: int) -> Sample:
    value = drawn(seed, ROWS, COLUMNS) + 3
    return value + drawn(seed + 1, *value.shape), budget(value, 1.0)


def shared(seed: int) -> Sample:
    """Every row has one error in proportion to its values, like a rounded rstd."""
    value = drawn(seed, ROWS, COLUMNS) + 3
    coef = value / 2
    row = torch.arange(ROWS)[:, None].expand(value.shape)
    error = uniform(seed + 1, *value.shape) + coef * drawn(seed + 2, ROWS, 1)
    return value + error, budget(value, 1.0, shared=(Shared(-1 - seed, coef, row),))


def repeated(seed: int) -> Sample:
    """All rows are the same row, and round alike."""
    value = (drawn(seed, 1, COLUMNS) + 3).expand(ROWS, COLUMNS).contiguous()
    return value + uniform(seed + 1, 1, COLUMNS), budget(value, 1.0)


def equal(seed: int) -> Sample:
    """All values of a row are one number."""
    value = (drawn(seed, ROWS, 1) + 3).expand(ROWS, COLUMNS).contiguous()
    return value + uniform(seed + 1, ROWS, 1), budget(value, 1.0)


def few(seed: int) -> Sample:
    """Eight numbers in all, each with its own error."""
    palette, errors = drawn(seed, 8) + 3, uniform(seed + 1, 8)
    index = torch.randint(8, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(seed + 2))
    return palette[index] + errors[index], budget(palette[index], 1.0)


def low_rank(seed: int) -> Sample:
    """``act @ w2`` with three terms: the errors of a row are combinations of the same three."""
    w = drawn(seed, 3, COLUMNS)
    act = drawn(seed + 1, ROWS, 3)
    x = Budgeted(act, torch.full_like(act, 1e-4), torch.full_like(act, 1.0), Arithmetic())
    return (act + 1e-2 * uniform(seed + 2, ROWS, 3)) @ w, x @ w


def normalised(seed: int) -> Sample:
    """A real chain: bfloat16 inputs, rms normalisation, a bfloat16 result."""
    x = drawn(seed, ROWS, COLUMNS).float() * 1.37
    y = rms_normalise(x.to(torch.bfloat16).float(), eps=1e-6)
    expected = rms_normalise(Budgeted.exact(x.to(torch.bfloat16)), eps=1e-6)  # type: ignore[arg-type]
    return y.to(torch.bfloat16).double(), rounded(expected, "bfloat16")  # type: ignore[return-value]


KINDS: list[Callable[[int], Sample]] = [
    *(independent, normal, shared, repeated, equal, few, low_rank, normalised),
]  # fmt: skip
TESTS = ("element", "mean", "row", "column", "gain")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_correct_samples_hold(kind: Callable[[int], Sample]) -> None:
    alarms = [seed for seed in range(0, 1500, 10) if not compare("y", *kind(seed)).passed]
    assert alarms == [], f"each of these has a probability of {ALPHA}"


# An alarm in a hundred for each of the five tests; a test that is no tighter than it says raises no more.
LOUD, DRAWS = 0.05, 200


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_at_a_loud_rate_alarms_stay_within_their_binomial(
    kind: Callable[[int], Sample], record_property: Callable[[str, object], None]
) -> None:
    alarms: Counter[str] = Counter()
    for seed in range(DRAWS):
        tests = compare("y", *kind(10_000 + 10 * seed), alpha=LOUD).tests
        alarms.update(name for name, share in tests.items() if share > 1)
    record_property("alarms over their share", {name: alarms[name] / (DRAWS * LOUD / 5) for name in TESTS})
    share = DRAWS * LOUD / 5
    assert all(count <= share + 4 * math.sqrt(share) for count in alarms.values()), alarms


def test_limits_on_normal_errors_are_not_loose() -> None:
    """At one alarm in ten a test, normal errors raise about as many as they should: at least a fifth of them.

    The mean of all elements is left out: its limit allows for the model's own error, see MODEL_ERROR.
    """
    alarms: Counter[str] = Counter()
    for seed in range(200):
        tests = compare("y", *normal(50_000 + 10 * seed), alpha=0.5).tests
        alarms.update(name for name, share in tests.items() if share > 1)
    share = 200 * 0.5 / 5
    assert all(share / 5 <= alarms[name] <= 2 * share for name in set(TESTS) - {"mean"}), alarms


def plant(test: str) -> Sample:
    """An error that only one test is made for, far too small for any other."""
    value = drawn(1, 400, 400) + 3
    error, expected = uniform(2, 400, 400), budget(value, 1.0)
    if test == "element":
        error[7, 9] = 9.0
    elif test == "mean":
        error = error * 1.05
    elif test == "row":
        error[7] = error[7] * 1.4
    elif test == "column":
        error[:, 9] = error[:, 9] * 1.4
    elif test == "gain":
        error = error + value * 0.012
    return value + error, expected


@pytest.mark.parametrize("test", TESTS)
def test_each_test_fails_alone_on_its_own_error(test: str) -> None:
    found = compare("y", *plant(test))
    assert [name for name, share in found.tests.items() if share > 1] == [test]


def test_nothing_fails_where_nothing_is_planted() -> None:
    found = compare("y", *plant("nothing"))
    assert found.passed
    assert 0.97 < found.mean_z2 < 1.03


def test_a_bound_is_kept_even_within_tau_sigma() -> None:
    value = drawn(3, 8, 8).round(decimals=0)
    expected = Budgeted(value, torch.full_like(value, 1.0), torch.full_like(value, 0.5), Arithmetic())
    assert compare("y", value + 0.5, expected).passed
    found = compare("y", value + 0.75, expected)
    assert (found.utilisation, found.passed) == (1.5, False)


def test_the_element_that_strays_furthest_is_told() -> None:
    value = torch.arange(12.0, dtype=torch.float64).view(3, 4)
    expected = Budgeted(value, torch.ones_like(value), torch.full_like(value, 0.5), Arithmetic())
    actual = value.clone()
    actual[0, 0], actual[1, 2] = 0.25, 7.0
    found = compare("y", actual, expected)
    assert (found.worst, found.elements, found.unspecified) == (Mismatch((1, 2), 7.0, 6.0, 0.5), 12, 0)
    assert exactly("y", actual, value).unspecified == 0


def test_one_element_is_judged_and_none_proves_nothing() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert not compare("y", one + 1e9, budget(one, 1.0)).passed
    found = compare("y", one[:0], budget(one[:0], 1.0))
    assert (found.tests, found.worst, found.elements, found.utilisation) == ({}, None, 0, 0.0)


def test_without_a_budget_any_difference_is_wrong() -> None:
    value = torch.tensor([1.0, math.inf, math.nan], dtype=torch.float64)
    nothing = torch.zeros_like(value)
    exact = Budgeted(value, nothing, nothing, Arithmetic())
    assert compare("y", value, exact).utilisation == 0
    for place, wrong in ((0, 1.5), (0, math.nan), (1, 3.0), (1, -math.inf), (2, 0.0)):
        other = value.clone()
        other[place] = wrong
        assert compare("y", other, exact).utilisation == math.inf


def test_a_number_is_wrong_where_the_reference_is_none_unless_zero_was_divided_by_zero() -> None:
    x = Budgeted.exact(torch.tensor([[math.nan, 1.0]] * 40))
    for wrong in (torch.zeros(40, 2), torch.ones(40, 2)):
        assert compare("y", wrong, x + x).utilisation == math.inf
    zero = Budgeted.exact(torch.zeros(4))
    for whatever in (torch.zeros(4), torch.full((4,), math.nan)):
        assert compare("y", whatever, zero / zero).passed


def test_aggregates_are_left_out_where_one_element_has_decided_in_haste() -> None:
    value = drawn(10, ROWS, COLUMNS)
    wrong = value.clone()
    wrong[0, 0] += 1e3
    assert set(compare("y", value, budget(value, 1.0), hasty=True).tests) == set(TESTS)
    assert set(compare("y", wrong, budget(value, 1.0), hasty=True).tests) == {"element"}
    assert set(compare("y", wrong, budget(value, 1.0)).tests) == set(TESTS)
    assert set(compare("y", wrong * math.inf, budget(value, 1.0)).tests) == {"element"}


def test_below_32_elements_only_elements_are_tested() -> None:
    value = drawn(4, 31)
    assert set(compare("y", value, budget(value, 1.0)).tests) == {"element"}


def test_nan_is_wrong_unless_expected() -> None:
    value = drawn(5, 4)
    expected = budget(value, 1.0)
    assert compare("y", value.index_fill(0, torch.tensor([2]), torch.nan), expected).utilisation == math.inf
    value[2] = torch.nan
    assert compare("y", value, budget(value, 1.0)).passed
    assert not compare("y", value.nan_to_num(0.0), budget(value, 1.0)).passed


def test_what_the_budget_cannot_place_judges_nothing_and_is_counted() -> None:
    value = drawn(6, 4)
    bound = torch.tensor([1.0, math.inf, 1.0, 1.0], dtype=torch.float64)
    expected = Budgeted(value, torch.ones_like(value), bound, Arithmetic())
    found = compare("y", value + torch.tensor([0.0, 1e9, 0.0, 0.0]), expected)
    assert (found.passed, found.unspecified) == (True, 1)


def test_exact_outputs_are_equal_or_wrong() -> None:
    right = torch.tensor([1, 2, 3])
    assert exactly("ids", right, right).passed
    found = exactly("ids", torch.tensor([1, 2, 4]), right)
    assert not found.passed
    assert found.worst is not None
    assert (found.worst.index, found.worst.actual, found.worst.expected) == ((2,), 4.0, 3.0)
    assert found.tests == {"element": 2.0}
    numbers = torch.tensor([1.0, math.nan])
    assert exactly("y", numbers, numbers).passed
    assert not exactly("y", numbers.nan_to_num(0.0), numbers).passed
    assert not exactly("y", torch.tensor([math.nan, math.nan]), numbers).passed


def test_codes_lie_between_the_lowest_and_the_highest() -> None:
    code = torch.tensor([1.0, 2.0], dtype=torch.float64)
    expected = Budgeted(code, code, code, Arithmetic(), allowed=(code, code + torch.tensor([0.0, 1.0])))
    assert within_codes("q", torch.tensor([1.0, 3.0]), expected).passed
    assert within_codes("q", torch.tensor([1.0, 2.0]), expected).passed
    found = within_codes("q", torch.tensor([1.0, 4.0]), expected)
    assert (found.tests, found.worst) == ({"element": 2.0}, Mismatch((1,), 4.0, 2.0, 0.5))
    assert not within_codes("q", torch.tensor([1.0, math.nan]), expected).passed
    assert not within_codes("q", torch.tensor([0.0, 3.0]), expected).passed
    with pytest.raises(ValueError, match="did not come from a quantiser"):
        within_codes("q", code, budget(code, 1.0))


def test_one_flip_of_a_rare_code_decides_no_aggregate() -> None:
    value = drawn(7, ROWS, COLUMNS)
    jump = torch.zeros_like(value)
    jump[3, 3], var = 1.0, torch.full_like(value, 1e-4)
    var[3, 3] = 1e-12
    flipped = value + 1e-2 * uniform(8, ROWS, COLUMNS)
    flipped[3, 3] = value[3, 3] + 1.0
    assert compare("y", flipped, budget(value, var, jump=jump)).passed


def test_a_statistic_that_is_not_a_number_passes_nothing() -> None:
    assert not Comparison("y", {"element": 0.5, "gain": float("nan")}, None, 9).passed
    assert Comparison("y", {"element": 0.5, "gain": 1.0}, None, 9).passed


def test_rows_of_the_same_numbers_share_one_error() -> None:
    value = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    by_row = torch.arange(3)[:, None].expand(3, 2)

    merged = rows_alike(value, by_row)

    assert bool((merged[0] == merged[1]).all())
    assert int(merged[0, 0]) != int(merged[2, 0])
    by_column = torch.arange(2).expand(3, 2)
    assert rows_alike(value, by_column) is by_column


@pytest.mark.parametrize("away, passes", [(0.0, True), (1.0, False)])
def test_numbers_that_nearly_repeat_err_by_their_last_rounding(away: float, passes: bool) -> None:
    # 0.9 of half a spacing below 1 in bfloat16, and so little apart that all of a column round alike.
    value = 1.0 - 0.9 * 2.0**-9 + 1e-6 * drawn(9, 4000, 2)
    kernel = (value.to(torch.bfloat16).double() - away * 2.0**-8).to(torch.bfloat16)
    assert compare("y", kernel, budget(value, 1.3 * 2.0**-18 / 3)).passed == passes
