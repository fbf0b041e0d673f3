"""Budget rules of the elementary operations: data movement, arithmetic, elementwise functions, sums, products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from minimax_m2.harness.budget import Budgeted, Shared, element_labels, new_shared, rule, with_roundoff
from minimax_m2.harness.formats import FORMATS, half_ulp
from minimax_m2.reference.contract import rounded

# -- data movement ---------------------------------------------------------------------------------------------------


def _movement(name: str) -> None:
    method = getattr(torch.Tensor, name)
    rule(name)(lambda x, *args, **kwargs: x.moved(lambda t: method(t, *args, **kwargs)))


for _name in (
    *("reshape", "view", "transpose", "permute", "unsqueeze", "squeeze", "flatten", "contiguous", "clone"),
    *("narrow", "select", "gather", "index_select", "flip", "roll", "movedim"),
):
    _movement(_name)


def _duplication(name: str) -> None:
    """A movement that repeats elements: the copies share one error."""
    method = getattr(torch.Tensor, name)

    def duplicate(x: Budgeted, *args: Any, **kwargs: Any) -> Budgeted:
        if bool(x.var.any()):
            own = new_shared(x.var.sqrt(), element_labels(x.value), x.value)
            x = replace(x, var=torch.zeros_like(x.var), shared=(*x.shared, own), limited=None)
        return x.moved(lambda t: method(t, *args, **kwargs))

    rule(name)(duplicate)


for _name in ("expand", "expand_as", "broadcast_to", "repeat_interleave", "repeat"):
    _duplication(_name)


@rule("to", "double", "float", "type_as", "detach")
def _same(x: Budgeted, *args: Any, **kwargs: Any) -> Budgeted:
    """A change of working dtype is not a rounding site: sites are named by ``rounded``."""
    return x


def _piecewise(name: str) -> None:
    method = getattr(torch.Tensor, name)

    def pieces(x: Budgeted, *args: Any, **kwargs: Any) -> tuple[Budgeted, ...]:
        def piece(i: int) -> Budgeted:
            return x.moved(lambda t: method(t, *args, **kwargs)[i])

        return tuple(piece(i) for i in range(len(method(x.value, *args, **kwargs))))

    rule(name)(pieces)


for _name in ("chunk", "split", "unbind", "tensor_split"):
    _piecewise(_name)


def lift(x: Any, like: Budgeted) -> Budgeted:
    """See a plain tensor or number beside ``like`` as an exact value.

    A number of Python is a constant of the formula; a kernel holds it in its arithmetic, 1e-10 as float32's nearest.
    """
    if isinstance(x, Budgeted):
        return x
    exact = Budgeted.exact(torch.as_tensor(x, dtype=torch.float64, device=like.device), like.arithmetic)
    if isinstance(x, Tensor):
        return exact
    off = (exact.value.to(like.arithmetic.format.dtype).to(torch.float64) - exact.value).abs()
    return replace(exact, var=off.square(), bound=off)


def _anyone(*operands: Any) -> Budgeted:
    return next(x for x in operands if isinstance(x, Budgeted))


@rule("cat", "concat", "concatenate")
def _cat(tensors: Any, dim: int = 0) -> Budgeted:
    return _joined([lift(t, _anyone(*tensors)) for t in tensors], lambda parts: torch.cat(parts, dim))


@rule("stack")
def _stack(tensors: Any, dim: int = 0) -> Budgeted:
    return _joined([lift(t, _anyone(*tensors)) for t in tensors], lambda parts: torch.stack(parts, dim))


def _joined(parts: list[Budgeted], join: Callable[[list[Tensor]], Tensor]) -> Budgeted:
    sources = {s.source for p in parts for s in p.shared}
    shared = []
    for source in sorted(sources):
        found = [next((s for s in p.shared if s.source == source), None) for p in parts]
        coefs = [torch.zeros_like(p.value) if s is None else s.coef for p, s in zip(parts, found, strict=True)]
        labels = [
            torch.zeros_like(p.value, dtype=torch.int64) if s is None else s.label
            for p, s in zip(parts, found, strict=True)
        ]
        shared.append(Shared(source, join(coefs), join(labels)))
    return Budgeted(
        value=join([p.value for p in parts]),
        var=join([p.var for p in parts]),
        bound=join([p.bound for p in parts]),
        arithmetic=parts[0].arithmetic,
        shared=tuple(shared),
        limited=_join_optional([p.limited for p in parts], parts, join),
        jump=_join_optional([p.jump for p in parts], parts, join),
    )


def _join_optional(
    fields: list[Tensor | None], parts: list[Budgeted], join: Callable[[list[Tensor]], Tensor]
) -> Tensor | None:
    if all(f is None for f in fields):
        return None
    return join([torch.zeros_like(p.value) if f is None else f for f, p in zip(fields, parts, strict=True)])


@rule("where")
def where(condition: Tensor, a: Any, b: Any) -> Budgeted:
    like = _anyone(a, b)
    shape = torch.broadcast_shapes(condition.shape, lift(a, like).shape, lift(b, like).shape)
    left, right = (lift(p, like).moved(lambda t: t.expand(shape)) for p in (a, b))
    chosen = condition.expand(shape)
    return _joined([left, right], lambda parts: torch.where(chosen, parts[0], parts[1]))


@rule("masked_fill")
def _masked_fill(x: Budgeted, mask: Tensor, value: float) -> Budgeted:
    return where(~mask, x, torch.full_like(x.value, value))


@rule("zeros_like")
def _zeros_like(x: Budgeted, **kwargs: Any) -> Tensor:
    return torch.zeros_like(x.value)


@rule("new_zeros")
def _new_zeros(x: Budgeted, *size: Any, **kwargs: Any) -> Tensor:
    return x.value.new_zeros(*size)


# -- elementwise -----------------------------------------------------------------------------------------------------


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
    like = _anyone(a, b)
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
    like = _anyone(a, b)
    return lift(a, like), lift(b, like)


@rule("add")
def _add(a: Any, b: Any) -> Budgeted:
    x, y = _both(a, b)
    value, one = x.value + y.value, torch.ones((), dtype=torch.float64)
    return with_roundoff(binary(x, y, value, one, one, x.bound + y.bound), exact=x.is_exact & y.is_exact)


@rule("sub")
def _sub(a: Any, b: Any) -> Budgeted:
    x, y = _both(a, b)
    value, one = x.value - y.value, torch.ones((), dtype=torch.float64)
    return with_roundoff(binary(x, y, value, one, -one, x.bound + y.bound), exact=x.is_exact & y.is_exact)


@rule("mul", "multiply")
def _mul(a: Any, b: Any) -> Budgeted:
    x, y = _both(a, b)
    value = x.value * y.value
    bound = x.value.abs() * y.bound + y.value.abs() * x.bound + x.bound * y.bound
    out = binary(x, y, value, y.value, x.value, bound)
    if not isinstance(b, Budgeted) and _powers_of_two(y.value):
        return out
    if not isinstance(a, Budgeted) and _powers_of_two(x.value):
        return out
    return with_roundoff(out, exact=x.is_exact & y.is_exact | certain_zero(x) | certain_zero(y))


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

    Mean z^2 0.7 with torch, whose exp is within half of the 1 ulp that is allowed.
    """
    s = torch.sigmoid(x.value)
    scale, of_exp = s * x.arithmetic.unit, 2 * x.arithmetic.exp_ulps * (1 - s)
    out = unary(x, s, s * (1 - s), _sigmoid_slope(x), ulps=0.0)
    var, bound = scale.square() * (of_exp.square() + s.square()) / 3, scale * (of_exp + 1)
    return with_roundoff(replace(out, var=out.var + var, bound=out.bound + bound))


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
    # x / (1 + e) with e = exp(-x): the error of e counts by 1 - s; sum, quotient or product, and result round.
    s, (fmt, exp_ulps) = torch.sigmoid(x.value), x.arithmetic
    slope = s * (1 + x.value * (1 - s))
    # |silu'| <= 1.0999, reached at 2.4; the bound's second-order part is below that of the constant.
    out = unary(x, functional.silu(x.value), slope, 1.1, ulps=0.0)
    scale, of_exp = out.value.abs() * x.arithmetic.unit, 2 * exp_ulps * (1 - s)
    error, worst = scale * ((of_exp.square() + 2) / 3).sqrt(), scale * (of_exp + 2)
    # Where e overflows, or exp(x) is no normal number, a kernel may return 0.
    gone = x.value - x.bound < fmt.emin * math.log(2)
    error, worst = (torch.where(gone, out.value.abs(), e) for e in (error, worst))
    return with_roundoff(replace(out, var=out.var + error.square(), bound=out.bound + worst), exact=certain_zero(x))


@rule("softplus")
def _softplus(x: Budgeted, beta: float = 1.0, threshold: float = 20.0) -> Budgeted:
    return unary(x, functional.softplus(x.value, beta, threshold), torch.sigmoid(beta * x.value), 1.0, ulps=4.0)


@rule("clamp", "clip")
def _clamp(x: Budgeted, min: Any = None, max: Any = None) -> Budgeted:
    value = x.value.clamp(min, max)
    out = unary(x, value, (value == x.value).double(), 1.0, ulps=0.0)
    # A limit is a constant that the arithmetic may not hold.
    limits = (lift(float(limit), x) for limit in (min, max) if limit is not None)
    off = sum(((value == limit.value) * limit.bound for limit in limits), start=torch.zeros_like(value))
    return replace(out, var=out.var + off.square(), bound=out.bound + off)


@rule("clamp_min")
def _clamp_min(x: Budgeted, min: float) -> Budgeted:
    return _clamp(x, min=min)


@rule(rounded.__name__)
def _rounded(x: Budgeted, site: str | None) -> Budgeted:
    """A named rounding site: uniform noise of half a spacing, or code flips where the format is a quantiser's.

    A value known without error rounds to a known number: sums of two bfloat16 values lie on so few points between
    two neighbours that uniform noise would understate their error by a half.
    """
    if site is None:
        return x
    fmt = FORMATS[site]
    if site == "float8_e4m3fn":
        from minimax_m2.harness.budget_composites import quantised

        return quantised(x, fmt, lambda v: v.clamp(-fmt.largest, fmt.largest).to(fmt.dtype).to(torch.float64))
    # The spacing is that of the largest value the kernel may hold here: an error can reach the next binade.
    spacing = half_ulp(x.value.abs() + x.bound.nan_to_num(0.0, posinf=0.0), fmt)
    known = (x.value.to(fmt.dtype).to(torch.float64) - x.value).abs()
    error = torch.where(x.is_exact, known, half_ulp(x.value, fmt) / 3**0.5)
    worst = torch.where(error > 0, spacing, 0.0)
    overflow = x.value.abs() + x.bound >= fmt.largest + half_ulp(torch.tensor(fmt.largest, dtype=torch.float64), fmt)
    return replace(
        x,
        var=torch.where(overflow, torch.inf, x.var + error.square()),
        bound=torch.where(overflow, torch.inf, x.bound + worst),
        allowed=None,
    )


