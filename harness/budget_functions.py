"""Budget rules of elementwise functions, and of the named rounding sites."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minimax_m2.harness.budget import Budgeted, Shared, grid_of, new_shared, rule, with_roundoff
from minimax_m2.harness.budget_arithmetic import certain_zero
from minimax_m2.harness.budget_movement import lift
from minimax_m2.harness.budget_quantisers import quantised
from minimax_m2.harness.formats import FORMATS, half_ulp, rounding_variance
from minimax_m2.reference.contract import rounded


def unary(x: Budgeted, value: Tensor, slope: Tensor, steepest: Tensor | float, *, ulps: float) -> Budgeted:
    """An elementwise function: first order for ``var``; ``steepest`` bounds ``|f'|`` wherever the argument may lie."""
    steep = torch.as_tensor(steepest, dtype=torch.float64)
    out = Budgeted(
        value=value,
        var=x.var * slope.square(),
        bound=x.bound * steep,
        arithmetic=x.arithmetic,
        shared=tuple(s._replace(coef=s.coef * slope) for s in x.shared),
        limited=None if x.limited is None else x.limited * slope.square(),
        jump=None if x.jump is None else x.jump * steep,
    )
    return with_roundoff(out, ulps=ulps, exact=x.is_exact if ulps == 0.5 else None)


@rule("square")
def _square(x: Budgeted) -> Budgeted:
    return unary(x, x.value.square(), 2 * x.value, 2 * x.value.abs() + x.bound, ulps=0.5)


@rule("abs", "absolute")
def _abs(x: Budgeted) -> Budgeted:
    return replace(unary(x, x.value.abs(), x.value.sign(), 1.0, ulps=0.0), allowed=None)


@rule("sqrt")
def _sqrt(x: Budgeted) -> Budgeted:
    root = x.value.sqrt()
    lowest = (x.value - x.bound).clamp_min(0).sqrt()
    # Libraries of vector functions round square roots within 1 ulp, not to nearest.
    return unary(x, root, torch.where(root > 0, 0.5 / root, 0.0), 1 / (root + lowest), ulps=1.0)


@rule("rsqrt")
def _rsqrt(x: Budgeted) -> Budgeted:
    # rsqrt is an approximation everywhere: CUDA documents 2 ulp, and 1 / sqrt(x) rounds twice.
    value = x.value.rsqrt()
    lowest = x.value - x.bound
    steepest = torch.where(lowest > 0, 0.5 * lowest.abs().pow(-1.5), torch.inf)
    return unary(x, value, -0.5 * value / x.value, steepest.where(x.bound > 0, torch.zeros_like(steepest)), ulps=2.0)


@rule("exp")
def _exp(x: Budgeted) -> Budgeted:
    value = x.value.exp()
    return unary(x, value, value, (x.value + x.bound).exp(), ulps=x.arithmetic.exp_ulps)


@rule("log")
def _log(x: Budgeted) -> Budgeted:
    lowest = x.value - x.bound
    return unary(x, x.value.log(), 1 / x.value, torch.where(lowest > 0, 1 / lowest, torch.inf), ulps=2.0)


@rule("sigmoid")
def _sigmoid(x: Budgeted) -> Budgeted:
    """1 / (1 + e) with e = exp(-x): the relative error of e counts by 1 - s, the sum rounds, the quotient rounds.

    Mean z^2 0.7 with torch, whose exp is within half of the 1 ulp that is allowed. Near 0 the sum is 2 - d with so few
    digits of d that every other quotient lies at a tie, just beyond it by d^2/8: these all round one way, by a quarter
    of a spacing on average.
    """
    s = torch.sigmoid(x.value)
    scale, of_exp = s * x.arithmetic.unit, 2 * x.arithmetic.exp_ulps * (1 - s)
    out = unary(x, s, s * (1 - s), _sigmoid_slope(x), ulps=0.0)
    var, bound = scale.square() * (of_exp.square() + s.square()) / 3, scale * (of_exp + 1)
    shared = (*out.shared, *_leaning(x, s))
    return with_roundoff(replace(out, var=out.var + var, bound=out.bound + bound, shared=shared))


def _leaning(x: Budgeted, y: Tensor) -> list[Shared]:
    """What the quotients of a sigmoid near 0 have in common; ``y`` is the sigmoid, or a multiple of it."""
    crowded = x.value.abs() < 2.0 ** (1 - x.arithmetic.format.precision // 2)
    if not bool(crowded.any()):
        return []
    return [new_shared(torch.where(crowded, y * x.arithmetic.unit / 2, 0.0), (x.value < 0).long(), y)]


def _sigmoid_slope(x: Budgeted) -> Tensor:
    nearest_zero = (x.value.abs() - x.bound).clamp_min(0)
    s = torch.sigmoid(nearest_zero)
    return s * (1 - s)


def _with_relative(x: Budgeted, ulps: Tensor) -> Budgeted:
    error = 2 * half_ulp(x.value, x.arithmetic.format) * ulps
    tiny = x.value.abs() < 2.0**x.arithmetic.format.emin
    error = torch.where(tiny, x.value.abs().clamp_min(error), error)
    return replace(x, var=x.var + error.square() / 3, bound=x.bound + error, allowed=None)


@rule("silu")
def _silu(x: Budgeted, inplace: bool = False) -> Budgeted:
    # x / (1 + e) or x * (1 / (1 + e)) with e = exp(-x): the error of e counts by 1 - s; sum, quotient or product, and
    # result round; written as a product it leans as the sigmoid does.
    s, fmt, exp_ulps = torch.sigmoid(x.value), x.arithmetic.format, x.arithmetic.exp_ulps
    slope = s * (1 + x.value * (1 - s))
    # |silu'| <= 1.0999, reached at 2.4; the bound's second-order part is below that of the constant.
    out = unary(x, functional.silu(x.value), slope, 1.1, ulps=0.0)
    scale, of_exp = out.value.abs() * x.arithmetic.unit, 2 * exp_ulps * (1 - s)
    error, worst = scale * ((of_exp.square() + 2) / 3).sqrt(), scale * (of_exp + 2)
    # Where e overflows, or exp(x) is no normal number, a kernel may return 0.
    gone = x.value - x.bound < fmt.emin * math.log(2)
    error, worst = (torch.where(gone, out.value.abs(), e) for e in (error, worst))
    shared = (*out.shared, *_leaning(x, out.value))
    return with_roundoff(
        replace(out, var=out.var + error.square(), bound=out.bound + worst, shared=shared), exact=certain_zero(x)
    )


@rule("softplus")
def _softplus(x: Budgeted, beta: float = 1.0, threshold: float = 20.0) -> Budgeted:
    return unary(x, functional.softplus(x.value, beta, threshold), torch.sigmoid(beta * x.value), 1.0, ulps=4.0)


@rule("clamp", "clip")
def _clamp(x: Budgeted, min: Any = None, max: Any = None) -> Budgeted:
    value = x.value.clamp(min, max)
    # A value beyond a limit passes its error on where the error may bring it back.
    passes = (value - x.value).abs() <= x.bound
    out = unary(x, value, passes.double(), 1.0, ulps=0.0)
    # A limit is a constant that the arithmetic may not hold.
    limits = (lift(float(limit), x) for limit in (min, max) if limit is not None)
    off = sum(((value == limit.value) * limit.bound for limit in limits), start=torch.zeros_like(value))
    return replace(out, var=out.var + off.square(), bound=out.bound + off)


@rule("clamp_min")
def _clamp_min(x: Budgeted, min: float) -> Budgeted:
    return _clamp(x, min=min)


@rule(rounded.__name__)
def _rounded(x: Budgeted, site: str | None) -> Budgeted:
    """A named rounding site: noise on the grid of the value, or code flips where the format is a quantiser's.

    A value known without error rounds to a known number. One that a kernel already holds on the format's grid, as a
    float32 result at a float32 site, is not rounded again.
    """
    if site is None:
        return x
    fmt = FORMATS[site]
    if site == "float8_e4m3fn":
        return quantised(x, fmt, lambda v: v.clamp(-fmt.largest, fmt.largest).to(fmt.dtype).to(torch.float64))
    # The spacing is that of the largest value the kernel may hold here: an error can reach the next binade.
    spacing = half_ulp(x.value.abs() + x.bound.nan_to_num(0.0, posinf=0.0), fmt)
    known, grid = x.value.to(fmt.dtype).to(torch.float64) - x.value, grid_of(x)
    error = torch.where(x.is_exact, known.abs(), rounding_variance(x.value, fmt, grid).sqrt())
    worst = torch.where(torch.where(x.is_exact, error > 0, grid < 2 * spacing), spacing, 0.0)
    overflow = x.value.abs() + x.bound >= fmt.largest + half_ulp(torch.tensor(fmt.largest, dtype=torch.float64), fmt)
    coarser = torch.maximum(grid, 2 * half_ulp(x.value, fmt))
    out = replace(x, bound=torch.where(overflow, torch.inf, x.bound + worst), allowed=None, grid=coarser)
    parts = [*x.shared, *one_sided(torch.where(error > 0, known, 0.0), error)]
    label = repeated(x.value)
    if label is None:
        return replace(out, var=x.var + error.square(), shared=tuple(parts))
    return replace(out, shared=(*parts, new_shared(error * x.value.sign(), label, x.value)))


def one_sided(known: Tensor, error: Tensor) -> list[Shared]:
    """The mean of each row's rounding errors, where that of all is six times what noise would leave.

    Values that crowd within one spacing all round the same way (softmax weights of nearly equal scores round to 1),
    and a product with them adds those errors up. ``known`` is the error of rounding the exact values.
    """
    if known.ndim == 0 or known.shape[-1] < 2:
        return []
    mean = known.nan_to_num(0.0, posinf=0.0, neginf=0.0).mean(-1, keepdim=True)
    noise = (error.square().mean() / known.numel()).sqrt()
    if not bool(mean.mean().abs() > 6 * noise):
        return []
    # All rows lean for one reason, so their errors keep their signs against each other.
    return [new_shared(mean, torch.zeros_like(mean, dtype=torch.int64), known)]


def repeated(value: Tensor) -> Tensor | None:
    """Label elements by their significand where many agree, else None.

    The same significand rounds to the same relative error, so elements that repeat it err together: in a row of
    3,072 bfloat16 values over one root mean square some eight do, and their errors add up in a sum or a projection.
    """
    significand = (torch.frexp(value.abs()).mantissa * 2.0**40).round().to(torch.int64)
    glimpse = significand.flatten()[:: max(1, value.numel() // 2**16)]
    if value.numel() > 2**20 and glimpse.unique().numel() == glimpse.numel():
        return None
    _, label, count = significand.flatten().unique(return_inverse=True, return_counts=True)
    if value.numel() == 0 or float(count.square().sum()) <= 1.25 * value.numel():
        return None
    return label.view(value.shape)
