"""The elementwise functions that references are written with are the real functions, on every bf16 number.

mpmath's 80 bits are the judge. Bounds are in units in the last place (ulp) of the exact result in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

SMALLEST_NORMAL = 2.0**-1022


@pytest.fixture(scope="module")
def numbers() -> Tensor:
    """Every finite bf16 number, both zeros included, in float64."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16).to(torch.float64)
    return x[x.isfinite()]


def sigmoid(x: Any) -> Any:
    """Compute ``1 / (1 + exp(-x))``."""
    return 1 / (1 + mpmath.exp(-x))


def silu(x: Any) -> Any:
    """Compute ``x * sigmoid(x)``."""
    return x * sigmoid(x)


def rsqrt(x: Any) -> Any:
    """Compute ``1 / sqrt(x)``."""
    return 1 / mpmath.sqrt(x)


def error_in_ulp(actual: Tensor, x: Tensor, exact: Callable[[Any], Any]) -> float:
    """Measure the largest error of ``actual`` in ulp of the exact value; the ulp of subnormals is theirs."""
    worst = 0.0
    with mpmath.workprec(80):
        for value, argument in zip(actual.tolist(), x.tolist(), strict=True):
            expected = exact(mpmath.mpf(argument))
            ulp = math.ulp(float(abs(expected)))
            worst = max(worst, float(abs(mpmath.mpf(value) - expected) / ulp))
    return worst


# exp and rsqrt are one library call, good to 1 ulp. sigmoid adds to exp's 1 ulp the rounding of 1 + e and of the
# quotient: relative 2 * 2^-53 + 1 ulp, at most 2 ulp each near the lower end of a binade, so 4. silu adds a product or
# a quotient: 6. Beyond |x| = 709 results over- or underflow, where an ulp means nothing: that are the tests below.
@pytest.mark.parametrize(
    "function, exact, low, high, bound_ulp",
    [
        pytest.param(torch.exp, mpmath.exp, -708.0, 709.0, 1.0, id="exp"),
        pytest.param(torch.sigmoid, sigmoid, -708.0, math.inf, 4.0, id="sigmoid"),
        pytest.param(torch.nn.functional.silu, silu, -708.0, math.inf, 6.0, id="silu"),
        pytest.param(torch.rsqrt, rsqrt, 2.0**-133, math.inf, 2.0, id="rsqrt"),
    ],
)
def test_float64_functions_are_right_to_a_few_ulp_on_every_bf16_number(
    numbers: Tensor,
    function: Callable[[Tensor], Tensor],
    exact: Callable[[Any], Any],
    low: float,
    high: float,
    bound_ulp: float,
) -> None:
    x = numbers[(numbers >= low) & (numbers <= high)]
    assert error_in_ulp(function(x), x, exact) <= bound_ulp


@pytest.mark.parametrize("function", [torch.exp, torch.sigmoid, torch.nn.functional.silu])
def test_what_underflows_becomes_nothing(numbers: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    # exp(-709) is below the smallest normal number, sigmoid below exp, and silu is x times that.
    x = numbers[numbers <= -709.0]
    assert (function(x).abs() <= x.abs() * SMALLEST_NORMAL).all()


def test_what_overflows_becomes_infinite(numbers: Tensor) -> None:
    assert torch.exp(numbers[numbers >= 710.0]).isinf().all()
