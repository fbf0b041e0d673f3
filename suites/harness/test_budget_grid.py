"""Numbers that were rounded lie on a grid: what a further rounding does to them is counted point by point."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted, grid_of
from minimax_m2.harness.compare import compare
from minimax_m2.harness.formats import FORMATS, half_ulp, lowest_bit, rounding_variance
from minimax_m2.reference.contract import rounded

ROWS, WIDTH = 400, 256
# 12 bits, so that times a float32 number is no float32 number: what is rounded next is then unknown to the budget.
UNEVEN = 4505 / 4096


def drawn(seed: int) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("points", [1, 2, 4, 16, 256])
def test_the_variance_of_rounding_a_grid_is_that_of_its_points(points: int) -> None:
    """All points of [1, 2) with so many in one spacing of bfloat16, rounded by torch."""
    grid = 2.0**-7 / points
    v = 1 + torch.arange(128 * points, dtype=torch.float64) * grid
    error = v.to(torch.bfloat16).double() - v
    predicted = rounding_variance(v, FORMATS["bfloat16"], torch.full_like(v, grid))
    # Both are sums of dyadic numbers, exact but for the division by 12 and its 128 additions at most.
    assert abs(float(error.square().mean() - predicted.mean())) <= 2.0**-45 * float(predicted.mean())
    # An even number of neighbours: as many ties go down as up.
    assert float(error.mean()) == 0


def test_the_lowest_bit_divides_a_number_and_its_double_does_not() -> None:
    v = drawn(0).double()
    bit = lowest_bit(v)
    assert bool((v / bit == (v / bit).round()).all())
    assert bool((v / (2 * bit) != (v / (2 * bit)).round()).all())
    assert float(lowest_bit(torch.zeros(1, dtype=torch.float64))) == float("inf")


def turned(x: Any, y: Any, site: str) -> Any:
    """One channel of a rotation whose products are rounded."""
    return rounded(rounded(x * UNEVEN, site) - rounded(y * UNEVEN, site), site)


@pytest.mark.parametrize("site", ["bfloat16", "float16", "float32"])
def test_a_difference_of_rounded_products_is_calibrated(site: str) -> None:
    """Uniform noise for the last rounding gives mean z^2 1.06 here."""
    x, y = drawn(1), drawn(2)
    budget = turned(Budgeted.exact(x), Budgeted.exact(y), site)
    error = turned(x, y, site).double() - budget.value
    z = (error / budget.sigma)[budget.sigma > 0]
    assert 0.985 < float(z.square().mean()) < 1.015
    assert bool((error.abs() <= budget.bound).all())


def test_a_number_on_the_formats_grid_is_not_rounded_again() -> None:
    x: Any = Budgeted.exact(drawn(3)) * UNEVEN
    kept: Any = rounded(x, "float32")
    assert torch.equal(kept.var, x.var), "a float32 kernel holds float32 numbers"
    once: Any = rounded(x, "bfloat16")
    joined: Any = torch.cat([once, -once], -1)
    again: Any
    for again in (once, once * 0.5, joined, once + 0.0):
        twice: Any = rounded(again, "bfloat16")
        assert torch.equal(twice.sigma, again.sigma)


def test_a_sum_lies_on_the_finer_grid_of_its_terms() -> None:
    first: Any = Budgeted.exact(drawn(4))
    second: Any = Budgeted.exact(drawn(5))
    coarse: Any = rounded(first * UNEVEN, "bfloat16")
    fine: Any = rounded(second * UNEVEN, "float16")
    total = coarse + fine
    spacing = 2 * half_ulp(total.value, FORMATS["float32"])
    finest = torch.minimum(grid_of(coarse), grid_of(fine))
    assert torch.equal(grid_of(total), torch.maximum(finest, spacing))
    kept = finest >= spacing
    assert torch.equal(total.var[kept], (coarse.var + fine.var)[kept]), "float32 holds such a sum as it is"


def test_known_roundings_that_shrink_are_no_wrong_scale() -> None:
    """Products with a cosine one step below 1 round down, all of them; a wrong scale stays one."""
    x, y = drawn(6).bfloat16().float(), drawn(7).bfloat16().float()
    cosine = 1 - 2.0**-8

    def formula(a: Any, b: Any) -> Any:
        return rounded(rounded(a * cosine, "bfloat16") - rounded(b * cosine, "bfloat16"), "bfloat16")

    expected, kernel = formula(Budgeted.exact(x), Budgeted.exact(y)), formula(x, y)
    assert compare("y", kernel, expected).tests["gain"] > 1
    assert compare("y", kernel, expected, emulated=[lambda: kernel]).passed
    wrong = formula(x * 1.01, y * 1.01)
    assert compare("y", wrong, expected, emulated=[lambda: kernel]).tests["gain"] > 1
