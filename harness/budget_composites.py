"""Budget rules of reductions, products and normalisations: exact to first order, correlations included."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.budget import SMALLEST, Budgeted, Shared, new_shared, rule, with_roundoff
from minimax_m2.harness.budget_arithmetic import certain_zero, merged
from minimax_m2.harness.budget_lean import lean
from minimax_m2.harness.budget_movement import lift, where
from minimax_m2.harness.budget_tensor_core import cut_by_tensor_core

# A row of hidden size has 24 groups of 128; a row of chance repetitions has hundreds.
FEW_GROUPS = 64


def _along_rows(x: Tensor) -> Tensor:
    """A label for every row: all dimensions but the last."""
    rows = torch.arange(x[..., :1].numel(), device=x.device).view(x[..., :1].shape)
    return rows.expand(x.shape)


def _one_per_row(label: Tensor) -> bool:
    return label.shape[-1] == 0 or bool((label == label[..., :1]).all())


class Additions(NamedTuple):
    """How often the additions of a sum round its terms.

    random    of terms of random sign, whose partial sums grow with their number: of the sum of squares
    coherent  of terms of one sign, whose partial sums grow as fast as it: of the square of the sum
    longest   of any one term at most
    """

    random: float
    coherent: float
    longest: float


def additions(terms: int, lanes: int) -> Additions:
    """Count the roundings of adding ``terms`` products in ``lanes`` partial sums, or more, that end in a tree.

    Partial sums of k of n terms have ``squares * k / n`` or ``(total * k / n)^2``. A lane of n / L terms makes n / L of
    them, level j of the tree L / 2^j. An upper estimate, never above that of one lane.
    """
    lanes = max(1, min(lanes, terms))
    each, levels = math.ceil(terms / lanes), math.log2(lanes)
    coherent = each / (3 * lanes) + 2 * (1 - 1 / lanes)
    return Additions(min(each + levels, terms), min(coherent, terms / 3), min(each + math.ceil(levels), terms))


def accumulated(total: Tensor, squares: Tensor, terms: int, unit: float, lanes: int = 1) -> Tensor:
    """Variance of adding ``terms`` products in a format of unit roundoff ``unit``, in any order of ``lanes`` sums.

    An upper estimate: from 64 to 3,072 terms one lane measures mean z^2 0.15 to 0.67; kernels of 16 lanes 0.16 down
    to 0.006 where they do not say so, and 0.22 to 0.73 where they do.
    """
    count = additions(terms, lanes)
    return unit**2 / 3 * (count.random * squares + count.coherent * total.square())


@rule("sum")
def _sum(x: Budgeted, dim: int | None = None, keepdim: bool = False) -> Budgeted:
    if dim is None:
        return _sum(x.moved(lambda t: t.reshape(1, -1)), dim=-1).moved(lambda t: t[0])
    moved = x.moved(lambda t: t.movedim(dim, -1))
    out = _row_sum(moved)
    return out.moved(lambda t: t.unsqueeze(-1).movedim(-1, dim)) if keepdim else out


def _row_sum(x: Budgeted) -> Budgeted:
    terms, unit = x.value.shape[-1], x.arithmetic.unit
    total, squares, magnitude = x.value.sum(-1), x.value.square().sum(-1), x.value.abs().sum(-1)
    var, shared = x.var.sum(-1), []
    for part in x.shared:
        if _one_per_row(part.label):
            shared.append(part._replace(coef=part.coef.sum(-1), label=part.label[..., 0]))
        else:
            var = var + _incoherent(part.coef.unsqueeze(-2), part.label, None)[..., 0]
    bound = x.bound.sum(-1)
    if terms > 1:
        lanes = x.arithmetic.lanes
        # Equal terms round alike, so their roundings add up instead of averaging out.
        alike = (x.value.amax(-1) - x.value.amin(-1)).abs() <= 1e-6 * magnitude / terms
        worst = min(terms - 1, additions(terms, lanes).longest) * unit * magnitude
        var = var + torch.where(alike, worst.square() / 3, accumulated(total, squares, terms, unit, lanes))
        bound = bound + worst
        if bool((x.is_exact & (x.value >= 0)).all()):
            leaning = total * lean(x.value, lanes, unit)
            shared.append(new_shared(leaning, torch.zeros_like(total, dtype=torch.int64), total))
    jump = None if x.jump is None else x.jump.amax(-1)
    return Budgeted(total, var, bound, x.arithmetic, tuple(shared), None, jump)


def _incoherent(rows: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """Variance of ``sum_k rows_k weight_k eps[label_k]`` where the labels of all rows fall into the same few groups.

    Labels scattered over a row (numbers that happen to repeat) are seen as independent: after a product with weights
    of either sign their errors do not add up.
    """
    changes = (label[..., 1:] != label[..., :-1]).reshape(-1, label.shape[-1] - 1)
    if label.shape[-1] < 2 or int(changes[0].sum()) >= FEW_GROUPS or bool((changes != changes[0]).any()):
        squares = rows.square()
        return squares.sum(-1) if weight is None else squares @ weight.square()
    _, sizes = torch.unique_consecutive(label.reshape(-1, label.shape[-1])[0], return_counts=True)
    pieces = rows.split(sizes.tolist(), -1)
    if weight is None:
        return torch.stack([p.sum(-1).square() for p in pieces]).sum(0)
    weights = weight.split(sizes.tolist(), -2)
    return torch.stack([(p @ w).square() for p, w in zip(pieces, weights, strict=True)]).sum(0)


@rule("mean")
def _mean(x: Budgeted, dim: int | None = None, keepdim: bool = False) -> Budgeted:
    count = x.value.numel() if dim is None else x.value.shape[dim]
    return _sum(x, dim, keepdim) / count


@rule("amax")
def _amax(x: Budgeted, dim: int = -1, keepdim: bool = False) -> Budgeted:
    """The error of a maximum is that of the element which attains it, and of the nearest rival that may overtake it.

    A rival whose difference from the maximum has standard deviation s, d of them below it, adds
    ``s^2 E[(e - d)+^2] = s^2 ((1 + d^2) Phi(-d) - d phi(d))`` for normal e. Of n rivals as near as each other the
    largest adds up to 2 ln n times as much; equal numbers err alike and are no rivals.
    """
    index = x.value.argmax(dim, keepdim=True)
    top = x.moved(lambda t: t.gather(dim, index))
    spread = (x.sigma.square() + top.sigma.square()).sqrt()
    # From forty standard deviations on a normal density is 0 and its square no number.
    behind = ((top.value - x.value) / spread.clamp_min(SMALLEST)).clamp(0, 40)
    density = torch.exp(-behind.square() / 2) / math.sqrt(2 * math.pi)
    ahead = ((1 + behind.square()) * torch.special.ndtr(-behind) - behind * density).clamp_min(0)
    added = torch.where(x.value < top.value, spread.square() * ahead, 0.0).amax(dim, keepdim=True)
    out = replace(top, var=top.var + added, bound=x.bound.amax(dim, keepdim=True), allowed=None)
    return out if keepdim else out.moved(lambda t: t.squeeze(dim))


@rule("matmul", "mm", "bmm")
def _matmul(a: Any, b: Any) -> Budgeted:
    like = a if isinstance(a, Budgeted) else b
    x, y = lift(a, like), lift(b, like)
    terms, unit = x.value.shape[-1], like.arithmetic.unit
    value, count, noise = x.value @ y.value, additions(terms, like.arithmetic.lanes), unit**2 / 3
    var = (x.var + noise * count.random * x.value.square()) @ y.value.square() + noise * count.coherent * value.square()
    bound = (x.bound + count.longest * unit * x.value.abs()) @ y.value.abs()
    carried, shared = x.var, []
    if bool(y.bound.any()):
        var = var + x.value.square() @ y.var
        bound = bound + (x.value.abs() + x.bound) @ y.bound
    for part in x.shared:
        if _one_per_row(part.label):
            shared.append(_expand_last(part, part.coef @ y.value))
        else:
            var = var + _incoherent(part.coef, part.label, y.value)
            carried = carried + part.coef.square()
    for part in y.shared:
        if _one_per_row(part.label.mT):
            label = part.label[..., :1, :].expand(value.shape)
            shared.append(Shared(part.source, x.value @ part.coef, label))
        else:
            var = var + _incoherent(part.coef.mT, part.label.mT, x.value.mT).mT
    limited = None
    if bool(carried.any()):
        limited = (carried * _participation(carried).rsqrt()) @ y.value.square()
    jump = None
    if x.jump is not None:
        jump = x.jump.amax(-1, keepdim=True) * y.value.abs().amax(-2, keepdim=True)
    out = Budgeted(value, var, bound, like.arithmetic, merged(shared), limited, jump)
    kind = like.arithmetic.tensor_core
    return out if kind is None else cut_by_tensor_core(out, x.value, y.value, kind)


def _expand_last(part: Shared, coef: Tensor) -> Shared:
    return Shared(part.source, coef, part.label[..., :1].expand(coef.shape))


def _participation(var: Tensor) -> Tensor:
    """Effective number of independent error terms in each row, ``(sum v)^2 / sum v^2``: ``[..., 1]``, at least 1."""
    total = var.sum(-1, keepdim=True)
    return (total.square() / var.square().sum(-1, keepdim=True)).nan_to_num(1.0).clamp_min(1.0)


# -- normalisations --------------------------------------------------------------------------------------------------


def _jacobian(x: Budgeted, value: Tensor, gain: Tensor, own: Tensor, others: Tensor, bound: Tensor) -> Budgeted:
    """``dy_i = gain_i (dx_i - own_i sum_j others_j dx_j)``, applied exactly to independent and shared errors."""
    single, mixed, shared = x.var, (others.square() * x.var).sum(-1, keepdim=True), []
    for part in x.shared:
        if _one_per_row(part.label):
            coef = gain * (part.coef - own * (others * part.coef).sum(-1, keepdim=True))
            shared.append(part._replace(coef=coef))
        else:
            # Errors that repeat within a row reach the others of the row as one.
            single = single + part.coef.square()
            mixed = mixed + _sum_by_label(others * part.coef, part.label)
    # (1 - own others)^2 of its own error and own^2 others_j^2 of every other's; a cancellation may leave -1e-17.
    var = gain.square() * ((1 - 2 * own * others) * single + own.square() * mixed).clamp_min(0)
    jump = None if x.jump is None else x.jump * gain.abs()
    return Budgeted(value, var, bound, x.arithmetic, tuple(shared), None, jump)


def _sum_by_label(values: Tensor, label: Tensor) -> Tensor:
    """Per row, the sum over labels of the squared sum of ``values``, ``[..., 1]``."""
    wide, names = values.reshape(-1, values.shape[-1]), label.expand(values.shape).reshape(-1, values.shape[-1])
    rows = torch.arange(len(wide), device=wide.device)[:, None].expand(wide.shape)
    keys, place = torch.stack([rows, names], -1).reshape(-1, 2).unique(dim=0, return_inverse=True)
    sums = wide.new_zeros(len(keys)).index_add(0, place, wide.flatten())
    return wide.new_zeros(len(wide)).index_add(0, keys[:, 0], sums.square()).view(*values.shape[:-1], 1)


def _with_row_error(x: Budgeted, relative: Tensor | float, *, bounded: bool = False) -> Budgeted:
    """Add one relative error a row: the divisor of a normalisation; ``bounded``: its worst case is in ``x`` already."""
    coef = x.value * relative
    if not bool(coef.any()):
        return x
    part = new_shared(coef, _along_rows(x.value), x.value)
    return replace(x, shared=(*x.shared, part), bound=x.bound if bounded else x.bound + 2 * coef.abs())


def _with_lost_terms(x: Budgeted, share: Tensor) -> Budgeted:
    """Add what sums of positive terms lose: a term below half a spacing of the sum vanishes in it, never the reverse.

    ``share`` is each term over the sum. Every row leans one way: by 0.25 units of roundoff on average over 2,049 rows
    of 8 softmax weights of logits up to 50, 0.15 of it by terms below one unit.
    """
    lost = torch.where(share < x.arithmetic.unit, share, 0.0).sum(-1, keepdim=True)
    coef = x.value * lost
    if not bool(coef.any()):
        return x
    part = new_shared(coef, torch.zeros_like(coef, dtype=torch.int64), x.value)
    return replace(x, shared=(*x.shared, part), bound=x.bound + coef.abs())


@rule("renormalise")
def _renormalise(w: Budgeted, *, eps: float = 0.0) -> Budgeted:
    """Overestimates in float32, mean z^2 0.24 for 8 terms: the sum is taken to round at its full size every time."""
    terms = w.value.shape[-1]
    total = w.value.sum(-1, keepdim=True) + eps
    value = w.value / total
    room = total - w.bound.sum(-1, keepdim=True)
    if terms == 1 and eps == 0.0:
        # A number over itself is 1, unless it may have been flushed to zero.
        return replace(Budgeted.exact(value, w.arithmetic), bound=torch.where(room > 0, 0.0, torch.inf))
    bound = torch.where(room > 0, (w.bound + value * w.bound.sum(-1, keepdim=True)) / room, torch.inf)
    ones = torch.ones_like(value)
    out = _jacobian(w, value, 1 / total, value, ones, bound)
    # The sum rounds terms - 1 times; multiplying by a reciprocal rounds once more than dividing.
    out = _with_row_error(out, w.arithmetic.unit * (terms / 3) ** 0.5)
    return with_roundoff(_with_lost_terms(out, value), ulps=1.0)


@rule("rms_normalise")
def _rms_normalise(x: Budgeted, *, eps: float) -> Budgeted:
    """Overestimates in float32, mean z^2 0.11 at width 64: one lane adds up the squares, and rsqrt errs by 2 ulp."""
    width = x.value.shape[-1]
    mean = x.value.square().mean(-1, keepdim=True)
    rstd = torch.rsqrt(mean + eps)
    y = x.value * rstd
    worst = (x.value.abs() * x.bound).sum(-1, keepdim=True) * (2 / width)
    room = mean + eps - worst
    bound = torch.where(room > 0, x.bound * rstd + y.abs() * worst / room, torch.inf)
    out = _jacobian(x, y, rstd, y, y / width, bound)
    # The mean adds `width` terms of one sign; half of its relative error reaches rstd, rsqrt adds up to 2 ulp.
    unit = x.arithmetic.unit
    same = x.value.square()
    alike = (same.amax(-1, keepdim=True) - same.amin(-1, keepdim=True)) <= 1e-6 * mean
    lanes, total = x.arithmetic.lanes, mean * width
    random = accumulated(total, same.sum(-1, keepdim=True), width, unit, lanes).sqrt() / total.clamp_min(SMALLEST)
    longest = additions(width, lanes).longest
    relative = torch.where(alike, longest * unit / 3**0.5, random)
    out = _with_row_error(out, (0.25 * relative.square() + (4 * unit) ** 2 / 3).sqrt())
    # Half of what sums of squares have in common reaches rstd, of every row alike.
    leaning = out.value * (lean(same, lanes, unit) / 2)
    common = new_shared(leaning, torch.zeros_like(out.value, dtype=torch.int64), out.value)
    out = replace(out, shared=(*out.shared, common))
    worst_row = (0.5 * longest + 4) * unit
    return with_roundoff(replace(out, bound=out.bound + y.abs() * worst_row), exact=certain_zero(x))


@rule("softmax")
def _softmax(x: Budgeted) -> Budgeted:
    """The sum is taken to round at its full size every time, as where the largest term comes first.

    Overestimates flat rows: mean z^2 0.09 for 64 normal numbers in float32, 1.0 behind a bfloat16 rounding.
    """
    peak = x.value.amax(-1, keepdim=True)
    p = torch.softmax(x.value, -1)
    p = torch.where(peak == -torch.inf, 0.0, p)
    unit, distance = x.arithmetic.unit, (peak - x.value).nan_to_num(0.0, posinf=0.0)
    # exp's argument is a difference that rounds, and exp itself errs by exp_ulps.
    own = (unit * distance).square() / 3 + (2 * unit * x.arithmetic.exp_ulps) ** 2 / 3
    noisy = replace(x, var=x.var + torch.where(p > 0, own, 0.0), allowed=None)
    terms = x.value.shape[-1]
    relative = 2 * (x.bound.amax(-1, keepdim=True) + unit * (terms + 2 * x.arithmetic.exp_ulps + distance))
    out = _jacobian(noisy, p, p, torch.ones_like(p), p, p * torch.expm1(relative))
    out = _with_lost_terms(_with_row_error(out, unit * (terms / 3) ** 0.5), p)
    out = with_roundoff(out, ulps=1.0)
    # A single finite term is over itself: 1.
    alone = (x.value > -torch.inf).sum(-1, keepdim=True) <= 1
    sure = Budgeted.exact(p, x.arithmetic)
    return where(alone, sure, out) if bool(alone.any()) else out


@rule("unnormalised_softmax")
def _unnormalised_softmax(x: Budgeted) -> Budgeted:
    """``d e_i = e_i (dx_i - dx_peak)``: nothing at the peak, and the peak's own error is shared by its row.

    What else elements share is seen as independent; a score's error is small beside the rounding that follows.
    """
    peak, at = x.value.max(-1, keepdim=True)
    value = torch.exp(x.value - peak.masked_fill(peak == -torch.inf, 0.0))
    is_peak = torch.zeros_like(value, dtype=torch.bool).scatter(-1, at, True)
    unit, distance = x.arithmetic.unit, (peak - x.value).nan_to_num(0.0, posinf=0.0)
    of_exp = 2 * unit * x.arithmetic.exp_ulps
    scores = x.sigma.square()
    own = scores + ((unit * distance).square() + of_exp**2) / 3
    worst = torch.expm1(x.bound + x.bound.gather(-1, at) + unit * distance + of_exp)
    out = Budgeted(
        value=value,
        var=torch.where(is_peak, 0.0, value.square() * own),
        bound=torch.where(is_peak, 0.0, value * worst),
        arithmetic=x.arithmetic,
    )
    of_peak = torch.where(is_peak, 0.0, scores.gather(-1, at).sqrt())
    return _with_row_error(out, of_peak, bounded=True)
