"""Composite rules: exact where they must be, calibrated where errors are shared or codes flip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted, Shared, new_source
from minimax_m2.harness.compare import compare
from minimax_m2.reference.composites import renormalise, rms_normalise, softmax
from minimax_m2.reference.contract import rounded

# Times a float32 number this is no float32 number, so that the rounding behind it is unknown to the budget.
UNEVEN = 4505 / 4096
ROWS = 2000


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noisy(x: Any) -> Any:
    return rounded(x * UNEVEN, "bfloat16")


def z_of(formula: Callable[[Any], Any], x: Tensor) -> Tensor:
    budget = formula(noisy(Budgeted.exact(x)))
    error = formula(noisy(x)).double() - budget.value
    assert bool((error.abs() <= budget.bound).all())
    return (error / budget.sigma)[budget.sigma > 0]


def test_one_weight_over_itself_is_one() -> None:
    x: Any = Budgeted.exact(drawn(0, 9, 1).abs() + 1)
    weight: Any = renormalise(noisy(x))
    probability: Any = softmax(noisy(x))
    assert float(weight.sigma.max()) == float(probability.sigma.max()) == 0


def test_a_masked_softmax_of_one_key_is_one() -> None:
    x: Any = Budgeted.exact(drawn(0, 4, 3))
    hidden = torch.tensor([[False, True, True]]).expand(4, 3)
    p: Any = softmax(noisy(x).masked_fill(hidden, -torch.inf))
    assert torch.equal(p.value[:, 0], torch.ones(4, dtype=torch.float64))
    assert float(p.bound.max()) == 0


@pytest.mark.parametrize("terms", [2, 4, 8, 32])
def test_renormalised_weights_are_calibrated_at_every_k(terms: int) -> None:
    z = z_of(renormalise, drawn(1, ROWS, terms).abs() + 0.05)
    assert 0.8 < float(z.square().mean()) < 1.25


@pytest.mark.parametrize("terms", [2, 64, 512])
def test_softmax_is_calibrated_at_every_width(terms: int) -> None:
    z = z_of(softmax, drawn(2, 40 if terms > 2 else ROWS, terms) * 3)
    assert 0.8 < float(z.square().mean()) < 1.25


def test_a_rival_may_overtake_the_maximum() -> None:
    """A sure maximum with an unsure number just below it: what the maximum errs by is the other's doing."""
    rival = 1 - torch.linspace(0.001, 0.05, 4 * ROWS, dtype=torch.float64)
    noise = 0.02 * drawn(12, 4 * ROWS).double()
    values = torch.stack([torch.ones_like(rival), rival], -1)
    spread = torch.stack([torch.zeros_like(rival), torch.full_like(rival, 0.02)], -1)
    x: Any = replace(Budgeted.exact(values), var=spread.square(), bound=8 * spread)
    budget = x.amax(-1)
    error = torch.maximum(torch.ones_like(rival), rival + noise) - budget.value
    assert 0.8 < float((error / budget.sigma).square().mean()) < 1.25
    equal: Any = replace(x, value=torch.ones_like(values))
    assert float(equal.amax(-1).sigma.max()) == 0, "equal numbers err alike"


def test_errors_that_repeat_in_a_row_reach_an_exact_element_through_its_length() -> None:
    value, coef = torch.tensor([[3.0, 2.0, 1.0]]).double(), torch.tensor([[0.1, 0.2, 0.0]]).double()
    x: Any = replace(Budgeted.exact(value), shared=(Shared(new_source(), coef, torch.tensor([[7, 7, 8]])),))
    y: Any = rms_normalise(x, eps=0.0)
    moved = (value * coef).sum() / value.square().sum()
    # derived: 100 roundings of float32, by which the row's length errs besides
    assert float(y.sigma[0, 2] / (y.value[0, 2] * moved)) == pytest.approx(1.0, rel=100 * 2**-24)


def test_a_rounded_scale_is_an_error_that_its_row_shares() -> None:
    """Row sums of ``x * bf16(scale)``: the shared error adds up, and the prediction with it."""
    x, scale = drawn(3, ROWS, 64).abs() + 0.5, drawn(4, ROWS, 1).abs() + 0.5

    def formula(s: Any) -> Any:
        return x.to(s.dtype) * noisy(s)

    budget = formula(Budgeted.exact(scale))
    error = formula(scale).double() - budget.value
    total = budget.sum(-1)
    z = error.sum(-1) / total.sigma
    assert 0.8 < float(z.square().mean()) < 1.25
    independent = (error.sum(-1) / budget.sigma.square().sum(-1).sqrt()).square().mean()
    assert float(independent) > 20, "64 elements that share an error would be taken for independent"
    assert compare("y", budget.value + error, budget).passed


def added_up(scores: Tensor) -> Tensor:
    total = torch.zeros(len(scores))
    for column in scores.unbind(-1):
        total += column
    return scores / total[:, None]


@pytest.mark.parametrize("gain, passes", [(1.0, True), (1 + 2e-6, False)])
def test_weights_of_sums_that_lose_their_smallest_terms_lean_together(gain: float, passes: bool) -> None:
    scores = torch.softmax(drawn(11, 20 * ROWS, 8) * 20, -1).sort(-1, descending=True).values
    budget: Any = renormalise(Budgeted.exact(scores))  # type: ignore[arg-type]
    assert compare("weights", added_up(scores) * gain, budget).passed == passes


def test_a_row_behind_few_errors_hangs_together_where_their_numbers_repeat() -> None:
    weights, values = torch.tensor([[0.6, 0.01, 0.6, 0.02], [0.3, 0.03, 0.7, 0.3]]).double(), drawn(9, 4, 40).double()
    error = torch.rand_like(weights)
    apart = replace(Budgeted.exact(weights), var=error.square(), bound=error)
    label = torch.tensor([[0, 1, 0, 2], [3, 4, 5, 3]])
    repeating = replace(Budgeted.exact(weights), shared=(Shared(new_source(), error, label),), bound=error)
    behind: list[Any] = [x @ values for x in (apart, repeating)]
    assert torch.equal(behind[0].limited, behind[1].limited)
