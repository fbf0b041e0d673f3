"""Budget rules of quantisers: a prior error moves a value by whole steps of the codes, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import torch
from torch import Tensor

from minimax_m2.harness.budget import SMALLEST, Budgeted, rule, with_roundoff
from minimax_m2.harness.formats import FORMATS, Format, half_ulp
from minimax_m2.reference.block_quant import power_of_two_above
from minimax_m2.reference.swiglu_quant import rounded_int8

# A standard normal error by equally likely values, their variance 1.
_QUANTILES = torch.tensor([NormalDist().inv_cdf((i + 0.5) / 32) for i in range(32)], dtype=torch.float64)
NORMAL = _QUANTILES / _QUANTILES.square().mean().sqrt()


def quantised(x: Budgeted, fmt: Format, to_code: Callable[[Tensor], Tensor]) -> Budgeted:
    """Round to a code inside the value: a prior error rarely moves a value, and then by a whole step.

    A value at distance ``d`` from the nearest tie moves with probability ``P(err > d)``, taken for a Gaussian error
    (a uniform one of the same variance moves at most 9 % more often on average), so the variance of the step is
    ``step^2 P``. Where the prior error spans several steps, as that of a 16-bit number so small that it has few digits
    left, the variance is the mean square of the codes' moves. Errors that elements share are seen as flipping their
    codes independently.
    """
    code, sigma = to_code(x.value), x.sigma
    reach = torch.minimum(x.bound, 8 * sigma)
    low, high = to_code(x.value - reach), to_code(x.value + reach)
    room = torch.maximum(high - code, code - low)
    step = 2 * half_ulp(x.value, fmt)
    to_tie = (step / 2 - (x.value - code).abs()).clamp_min(0)
    probability = torch.special.ndtr(-to_tie / sigma.clamp_min(SMALLEST)) * (room > 0)
    return Budgeted(
        value=code,
        var=torch.maximum(step.square() * probability, _far_moves(x.value, code, sigma, reach, room > step, to_code)),
        bound=room,
        arithmetic=x.arithmetic,
        jump=torch.where(room > 0, step, 0.0),
        allowed=(low, high),
    )


def _far_moves(
    value: Tensor, code: Tensor, sigma: Tensor, reach: Tensor, far: Tensor, to_code: Callable[[Tensor], Tensor]
) -> Tensor:
    """The mean square of how far a Gaussian error moves a code; 0 where it cannot move it ``far``."""
    found = torch.zeros_like(value)
    if bool(far.any()):
        normal = NORMAL.to(sigma.device)
        error = torch.minimum((sigma[far][:, None] * normal).abs(), reach[far][:, None]) * normal.sign()
        found[far] = (to_code(value[far][:, None] + error) - code[far][:, None]).square().mean(-1)
    return found


@rule("rounded_int8")
def _rounded_int8(x: Budgeted, ties: str | None = None) -> Budgeted:
    return quantised(x, FORMATS["int8"], lambda v: rounded_int8(v, ties))


@rule("power_of_two_above")
def _power_of_two_above(x: Budgeted) -> Budgeted:
    """Exact unless the argument may lie on either side of a power of two: then either neighbour is right."""
    low, high = power_of_two_above(x.value - x.bound), power_of_two_above(x.value + x.bound)
    span = high - low
    value = power_of_two_above(x.value)
    return Budgeted(value, span.square(), span, x.arithmetic, jump=span, allowed=(low, high))


@rule("whole_product")
def _whole_product(q: Budgeted, w: Tensor) -> Budgeted:
    """Carry the codes that may be others; sums are exact, and float32 holds them unrounded up to 2^24."""
    exact = replace(q, arithmetic=q.arithmetic._replace(format=FORMATS["float64"], lanes=1, tensor_core=None))
    total = replace(exact @ w.to(torch.float64).mT, arithmetic=q.arithmetic)
    return with_roundoff(total, grid=torch.ones_like(total.value))
