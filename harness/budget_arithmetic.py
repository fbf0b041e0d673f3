"""Budget rules of arithmetic: errors of both operands to first order, shared where an operand is broadcast."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted, Shared, element_labels, grid_of, new_shared, rule, with_roundoff
from minimax_m2.harness.budget_movement import anyone, lift
from minimax_m2.harness.formats import half_ulp


def _spread(p: Budgeted, slope: Tensor, out: Tensor) -> tuple[Tensor, list[Shared], Tensor | None, Tensor | None]:
    """Carry the error of one operand to the result: what was independent becomes shared where ``p`` is broadcast."""
    grows = p.value.numel() < out.numel()
    shared = [Shared(s.source, s.coef * slope, s.label.expand(out.shape)) for s in p.shared]
    jump = None if p.jump is None else (p.jump * slope.abs()).expand(out.shape)
    if not grows:
        limited = None if p.limited is None else (p.limited * slope.square()).expand(out.shape)
        return (p.var * slope.square()).expand(out.shape), _expanded(shared, out), limited, jump
    if bool(p.var.any()):
        shared.append(new_shared(p.var.sqrt() * slope, element_labels(p.value), out))
    return torch.zeros_like(out), _expanded(shared, out), None, jump


def _expanded(shared: list[Shared], out: Tensor) -> list[Shared]:
    return [s._replace(coef=s.coef.expand(out.shape), label=s.label.expand(out.shape)) for s in shared]


def merged(parts: list[Shared]) -> tuple[Shared, ...]:
    """Add the coefficients of parts that come from one source: their errors are the same numbers."""
    found: list[Shared] = []
    for part in parts:
        for i, other in enumerate(found):
            if other.source == part.source and torch.equal(other.label, part.label):
                found[i] = other._replace(coef=other.coef + part.coef)
                break
        else:
            found.append(part)
    return tuple(found)


def largest(*jumps: Tensor | None) -> Tensor | None:
    """The larger of two single steps; ``None`` stands for no quantiser."""
    present = [j for j in jumps if j is not None]
    return None if not present else present[0] if len(present) == 1 else torch.maximum(*present)


def root_sum_square(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Join the correlated parts of two independent errors."""
    if a is None or b is None:
        return a if b is None else b
    return (a.square() + b.square()).sqrt()


def binary(a: Any, b: Any, value: Tensor, slope_a: Tensor, slope_b: Tensor, bound: Tensor) -> Budgeted:
    """Combine two operands to first order: ``d(value) = slope_a da + slope_b db``; ``bound`` is given whole.

    Operands are taken as independent but for the shared errors they carry. One inexact value used twice is not:
    ``x * x`` has twice the variance predicted (``x.square()`` is right) and ``x - x`` has none. A reference that
    needs such a step writes it as a composite.
    """
    like = anyone(a, b)
    a, b = lift(a, like), lift(b, like)
    var_a, shared_a, limited_a, jump_a = _spread(a, slope_a, value)
    var_b, shared_b, limited_b, jump_b = _spread(b, slope_b, value)
    return Budgeted(
        value=value,
        var=var_a + var_b,
        bound=bound.expand(value.shape),
        arithmetic=like.arithmetic,
        shared=merged(shared_a + shared_b),
        limited=root_sum_square(limited_a, limited_b),
        jump=largest(jump_a, jump_b),
    )


def _both(a: Any, b: Any) -> tuple[Budgeted, Budgeted]:
    like = anyone(a, b)
    return lift(a, like), lift(b, like)


@rule("add")
def _add(a: Any, b: Any) -> Budgeted:
    x, y = _both(a, b)
    return _total(x, y, x.value + y.value, 1.0)


@rule("sub")
def _sub(a: Any, b: Any) -> Budgeted:
    x, y = _both(a, b)
    return _total(x, y, x.value - y.value, -1.0)


def _total(x: Budgeted, y: Budgeted, value: Tensor, sign: float) -> Budgeted:
    """A sum: multiples of two spacings add up to a multiple of the finer, which is no rounding where it fits."""
    one = torch.ones((), dtype=torch.float64)
    total = binary(x, y, value, one, sign * one, x.bound + y.bound)
    grid = torch.minimum(grid_of(x), grid_of(y)).expand(value.shape)
    out = with_roundoff(total, exact=x.is_exact & y.is_exact, grid=grid)
    if x.grid is None and y.grid is None:
        return out
    return replace(out, grid=torch.maximum(grid, 2 * half_ulp(value, x.arithmetic.format)))


@rule("mul", "multiply")
def _mul(a: Any, b: Any) -> Budgeted:
    x, y = _both(a, b)
    value = x.value * y.value
    bound = x.value.abs() * y.bound + y.value.abs() * x.bound + x.bound * y.bound
    out = binary(x, y, value, y.value, x.value, bound)
    if not isinstance(b, Budgeted) and _powers_of_two(y.value):
        return replace(out, grid=_scaled_grid(x, y.value))
    if not isinstance(a, Budgeted) and _powers_of_two(x.value):
        return replace(out, grid=_scaled_grid(y, x.value))
    return with_roundoff(out, exact=x.is_exact & y.is_exact | certain_zero(x) | certain_zero(y))


def _scaled_grid(x: Budgeted, by: Tensor) -> Tensor | None:
    """The grid of ``x`` times powers of two, which keep it."""
    return None if x.grid is None else torch.where(by == 0, torch.inf, x.grid * by.abs())


def certain_zero(x: Budgeted) -> Tensor:
    """Elements that are 0 in every kernel: their product with any number is 0, unrounded."""
    return x.is_exact & (x.value == 0)


def _powers_of_two(v: Tensor) -> bool:
    return bool(((torch.frexp(v.abs()).mantissa == 0.5) | (v == 0)).all())


@rule("div", "divide")
def _div(a: Any, b: Any) -> Budgeted:
    x, y = _both(a, b)
    value = x.value / y.value
    room = y.value.abs() - y.bound
    bound = torch.where(room > 0, (x.bound + value.abs() * y.bound) / room, torch.inf)
    out = binary(x, y, value, 1 / y.value, -value / y.value, bound)
    if not isinstance(b, Budgeted) and _powers_of_two(y.value):
        return out
    return with_roundoff(out, exact=x.is_exact & y.is_exact | certain_zero(x))
