"""Codes that a prior error moves: by one step now and then, or far where 16 bits hold few digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted
from minimax_m2.harness.compare import compare
from minimax_m2.reference.block_quant import power_of_two_above, requantised
from minimax_m2.reference.contract import Contract, rounded
from minimax_m2.reference.quantised_product import operand, product, whole_product
from minimax_m2.reference.swiglu_quant import rounded_int8

# Times a float32 number this is no float32 number, so that the rounding behind it is unknown to the budget.
UNEVEN = 4505 / 4096
CONTRACT = Contract({"scale": "float32", "reciprocal": None, "scale_format": "float32"})


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def after(site: str, formula: Callable[[Any], Any], x: Tensor) -> tuple[Tensor, Budgeted]:
    """What ``formula`` makes of numbers that were rounded to ``site``: as a kernel does, and with its budget."""
    right, budget = (formula(rounded(v * UNEVEN, site)) for v in (x, Budgeted.exact(x)))  # type: ignore[arg-type]
    return right.double(), budget


def mean_z2(right: Tensor, budget: Budgeted) -> float:
    return float(((right - budget.value) / budget.sigma)[budget.sigma > 0].square().mean())


def test_codes_of_numbers_with_few_digits_are_calibrated() -> None:
    """Below 2^-14 float16 has a spacing of 2^-24, here several codes of a group whose largest number is small."""
    right, budget = after(
        "float16", lambda x: requantised(x, group=16, contract=CONTRACT), drawn(8, 600, 16).double() * 2.0**-24
    )
    assert 0.6 < mean_z2(right, budget) < 1.25
    assert compare("codes", right, budget).passed
    # Where a code's own step is all that the variance knows, the mean square is twenty times too large.
    step = budget.jump
    assert step is not None
    assert float((budget.var / step.square())[step > 0].max()) > 10


@pytest.mark.parametrize("behind", ["alone", "a product"])
def test_requantised_activations_are_calibrated(behind: str) -> None:
    weight = drawn(6, 128, 32)

    def formula(x: Any) -> Any:
        y = requantised(x, group=64, contract=CONTRACT)
        return y if behind == "alone" else y @ weight.to(y.dtype)

    # Codes that errors common to a group flip together are seen as flipping alone: within a third.
    assert 0.7 < mean_z2(*after("bfloat16", formula, drawn(5, 400, 128))) < 1.35


@pytest.mark.parametrize("ties", [None, "up"])
def test_int8_codes_lie_between_the_lowest_and_the_highest(ties: str | None) -> None:
    codes, budget = after("bfloat16", lambda x: rounded_int8(x, ties), drawn(7, 200, 64) * 40)
    assert budget.allowed is not None
    low, high = budget.allowed
    assert bool(((codes >= low) & (codes <= high)).all())
    assert 0 < float((codes != budget.value).double().mean()) < 0.5, "some codes flip"


BY_ROW = Contract({"activation": "int8", "scale": "float32", "reciprocal": None, "ties": None, "smallest": None})


def multiplied(x: Any) -> Any:
    """Rows quantised to int8 and multiplied by int8 weights, whose scales are even powers of two and uneven numbers."""
    weight = (drawn(9, 96, 64) * 40).round().clamp(-127, 127).to(torch.int8)
    w_scale = (drawn(10, 96, 1).abs() + 0.5).to(x.dtype)
    rows = operand(x, weight, group=64, contract=BY_ROW)
    return product(rows, weight, w_scale, block=(1, 64), dtype=x.dtype, contract=BY_ROW)


def test_products_of_int8_codes_are_calibrated() -> None:
    right, budget = after("bfloat16", multiplied, drawn(11, 300, 64))
    assert 0.7 < mean_z2(right, budget) < 1.35
    assert compare("y", right, budget).passed
    # One code of one row moved by one is seen.
    assert not compare("y", right + 0.02 * right.abs().mean() * (torch.arange(300) == 7)[:, None], budget).passed


@pytest.mark.parametrize("products, exact", [(1040, True), (1041, False)])  # 127 * 127 * 1041 is above 2^24
def test_a_sum_of_integers_is_exact_up_to_twenty_four_digits(products: int, exact: bool) -> None:
    q, w = torch.full((1, products), 127.0), torch.full((1, products), 127, dtype=torch.int8)
    found: Any = whole_product(Budgeted.exact(q), w)  # type: ignore[arg-type]
    # derived: a sum in float64 errs by its products' number of units of 2^-53; half a spacing of float32 is 1.
    assert bool((found.sigma < 1e-3).all()) == exact


def test_a_power_of_two_is_certain_unless_its_argument_may_lie_on_either_side() -> None:
    x: Any = Budgeted.exact(torch.tensor([0.75, 1.0]))
    assert float(power_of_two_above(x).bound.max()) == 0  # type: ignore[attr-defined]
    either = Budgeted(x.value, x.var, torch.tensor([0.1, 0.1], dtype=torch.float64), x.arithmetic)
    found: Any = power_of_two_above(either)  # type: ignore[arg-type]
    assert found.bound.tolist() == [0.0, 1.0]
    assert found.allowed[1].tolist() == [1.0, 2.0]
