"""Budget rule of the gated delta rule: a recurrence whose errors are carried along, decay, and are corrected again."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.budget import SMALLEST, Arithmetic, Budgeted, Shared, new_source, rule
from minimax_m2.harness.budget_composites import accumulated
from minimax_m2.harness.budget_movement import anyone, lift
from minimax_m2.harness.formats import half_ulp
from minimax_m2.reference.gated_delta_rule import delta_rule

# The families of shared errors are the same for every sequence, whose labels are its own: what a batch joins has four
# families and not four a sequence, each as large as the batch.
COLUMN, HEAD, LENGTH, MEETING = (new_source() for _ in range(4))
LABELS = 1 << 32
_sequences = itertools.count()


class _Errors(NamedTuple):
    """Variances of a value by what shares the error, and its worst case.

    own     independent from element to element
    column  shared by all that has the same value head and column: the errors of the corrections
    head    shared by the value heads of one key head: the errors of keys, decays and strengths
    """

    own: Tensor
    column: Tensor
    head: Tensor
    bound: Tensor


class _Token(NamedTuple):
    """One token's exact numbers by value head, with the errors of its query, key, decay and strength."""

    q: Tensor  # [Hv, Dk], like k
    k: Tensor
    q_var: Tensor
    k_var: Tensor
    q_bound: Tensor
    k_bound: Tensor
    decay: Tensor  # [Hv, 1, 1], like beta
    decay_var: Tensor
    decay_bound: Tensor
    beta: Tensor
    beta_var: Tensor
    beta_bound: Tensor
    v: Tensor  # [Hv, Dv]


@rule(delta_rule.__name__)
def _delta_rule(q: Any, k: Any, v: Any, decay: Any, beta: Any, state: Tensor, group: int) -> tuple[Budgeted, Budgeted]:
    """First order in the errors of q, k, decay, beta and of every operation; v and the first state are exact.

    A kernel may take tokens one by one or several at once: sums are taken to round in one lane, which leaves room
    for either.
    """
    like = anyone(q, k, v, decay)
    q, k, v, decay, beta = (lift(x, like) for x in (q, k, v, decay, beta))
    per_key_head = (q.value, k.value, q.sigma.square(), k.sigma.square(), q.bound, k.bound)
    by_channel = [part.repeat_interleave(group, 1) for part in per_key_head]
    by_head = [part for x in (decay, beta) for part in (x.value, x.sigma.square(), x.bound)]
    errors = _Errors(*[torch.zeros_like(state)] * 4)
    outputs: list[tuple[Tensor, _Errors, Tensor, Tensor]] = []
    for t in range(len(v.value)):
        channels, heads = [part[t] for part in by_channel], [part[t, :, None, None] for part in by_head]
        token = _Token._make([*channels, *heads, v.value[t]])
        old = token.decay * state
        state, errors, delta = _written(token, state, errors, like.arithmetic)
        outputs.append(_read(token, old, delta, state, errors, like.arithmetic))
    return _outputs(outputs, group, like.arithmetic), _budgeted(state, errors, group, like.arithmetic)


def _written(token: _Token, before: Tensor, errors: _Errors, arithmetic: Arithmetic) -> tuple[Tensor, _Errors, Tensor]:
    """The state after a token, its errors, and the correction ``delta [Hv, 1, Dv]``; ``before`` is the state so far."""
    unit, k, beta, width = arithmetic.unit, token.k[..., None], token.beta, token.k.shape[-1]
    old = token.decay * before
    terms = k * old
    read = terms.sum(-2, keepdim=True)
    miss = token.v[:, None] - read
    delta = beta * miss
    step = k * delta
    state = old + step
    # An element is rounded as a product, as another, and as their sum; a correction as a sum, difference and product.
    roundings = torch.stack([_rounding(x, arithmetic) for x in (old, step, state)])
    own = roundings.square().sum(0) / 3
    summed = accumulated(read, terms.square().sum(-2, keepdim=True), width, unit)
    column = k.square() * beta.square() * (summed + 2 / 3 * unit**2 * miss.square())
    # d(decay) reaches (I - beta k k^T) S, d(beta) k (v - k^T S)^T.
    # dk reaches dk delta^T - beta k (dk^T S), alike where all of k errs alike.
    turned, k_var = k * beta * read, token.k_var[..., None]
    alike = k_var.sum(-2, keepdim=True) / k.square().sum(-2, keepdim=True).clamp_min(SMALLEST)
    kept = before - k * beta * (k * before).sum(-2, keepdim=True)
    head = token.decay_var * kept.square() + token.beta_var * (k * miss).square()
    head = head + alike * (step - turned).square()
    head = head + k_var * delta.square() + (k * beta).square() * (k_var * old.square()).sum(-2, keepdim=True)
    length, size, wrong_k = k.norm(dim=-2, keepdim=True), old.norm(dim=-2, keepdim=True), token.k_bound[..., None]
    wrong_delta = beta * ((width + 2) * unit * (length * size + miss.abs()) + wrong_k.norm(dim=-2, keepdim=True) * size)
    bound = 2 * roundings.norm(dim=-2, keepdim=True).sum(0)
    bound = bound + length * wrong_delta + wrong_k.norm(dim=-2, keepdim=True) * delta.abs()
    bound = bound + token.beta_bound * length * miss.abs()
    bound = bound + token.decay_bound * (1 + beta * length.square()) * before.norm(dim=-2, keepdim=True)
    carried = _carried(errors, token)
    return state, _Errors(*(old + new for old, new in zip(carried, (own, column, head, bound), strict=True))), delta


def _rounding(x: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Half a spacing; all of a number below the smallest normal one, which may be flushed to zero."""
    worst = half_ulp(x, arithmetic.format)
    return torch.where(x.abs() < 2.0**arithmetic.format.emin, x.abs().clamp_min(worst), worst)


def _carried(errors: _Errors, token: _Token) -> _Errors:
    """Errors after ``decay (I - beta k k^T)``. Within a column they are seen as independent.

    The bound is that of a column's Euclidean length, which a key of length 1 leaves no longer than it was.
    """
    squares, beta, decay = token.k.square()[..., None], token.beta, token.decay

    def passed(var: Tensor) -> Tensor:
        crossed = beta.square() * squares * (squares * var).sum(-2, keepdim=True)
        return decay.square() * ((1 - 2 * beta * squares) * var + crossed).clamp_min(0)

    stretch = (1 - beta * squares.sum(-2, keepdim=True)).abs().clamp_min(1)
    return _Errors(passed(errors.own), passed(errors.column), passed(errors.head), decay * stretch * errors.bound)


def _read(
    token: _Token, old: Tensor, delta: Tensor, state: Tensor, errors: _Errors, arithmetic: Arithmetic
) -> tuple[Tensor, _Errors, Tensor, Tensor]:
    """``q^T S`` ``[Hv, Dv]``, its errors, and those that a key head's columns share: of q's length, of ``q^T k``.

    A kernel adds up ``q^T S``, or ``q^T`` of the old state and ``(q^T k) delta``: both sums are allowed for.
    What elements of the state share may line up with q, so it counts by the Cauchy-Schwarz inequality.
    """
    unit, q, width = arithmetic.unit, token.q[..., None], token.q.shape[-1]
    step = token.k[..., None] * delta
    value, long = (q * state).sum(-2), token.q.square().sum(-1, keepdim=True)
    own = (q.square() * errors.own + token.q_var[..., None] * state.square()).sum(-2)
    for part in (old, step):
        terms = q * part
        own = own + accumulated(terms.sum(-2), terms.square().sum(-2), width, unit)
    column, head = long * errors.column.sum(-2), long * errors.head.sum(-2)
    size = old.norm(dim=-2) + step.norm(dim=-2)
    bound = long.sqrt() * (errors.bound[:, 0] + (width + 2) * unit * size)
    bound = bound + token.q_bound.norm(dim=-1, keepdim=True) * size
    alike = (token.q_var.sum(-1, keepdim=True) / long.clamp_min(SMALLEST)).sqrt() * value
    meets = token.q * token.k
    met = accumulated(meets.sum(-1, keepdim=True), meets.square().sum(-1, keepdim=True), width, unit)
    return value, _Errors(own, column, head, bound), alike, met.sqrt() * delta[:, 0]


def _budgeted(value: Tensor, errors: _Errors, group: int, arithmetic: Arithmetic) -> Budgeted:
    """A state ``[Hv, Dk, Dv]``, or outputs ``[n, Hv, Dv]`` with their value heads moved in front: ``[Hv, n, Dv]``."""
    heads, _, width = value.shape
    columns = torch.arange(heads * width).view(heads, 1, width)
    key_heads = (torch.arange(heads) // group)[:, None, None]
    # With the value's own sign, shared errors add up to the most in its direction.
    sign, first = value.sign(), _first_label()
    shared = (
        _shared(COLUMN, errors.column.sqrt() * sign, first + columns, value),
        _shared(HEAD, errors.head.sqrt() * sign, first + key_heads, value),
    )
    return Budgeted(value, errors.own, errors.bound.expand(value.shape), arithmetic, shared)


def _outputs(outputs: list[tuple[Tensor, _Errors, Tensor, Tensor]], group: int, arithmetic: Arithmetic) -> Budgeted:
    values, found, *shared = zip(*outputs, strict=True)
    value = torch.stack(values, 1)
    errors = _Errors(*(torch.stack(parts, 1) for parts in zip(*found, strict=True)))
    out = _budgeted(value, errors, group, arithmetic).moved(lambda t: t.transpose(0, 1))
    tokens, heads, _ = out.value.shape
    rows = torch.arange(tokens)[:, None, None] * heads + (torch.arange(heads) // group)[:, None] + _first_label()
    families = zip((LENGTH, MEETING), shared, strict=True)
    alike = (_shared(family, torch.stack(parts), rows, out.value) for family, parts in families)
    return Budgeted(out.value, out.var, out.bound, arithmetic, (*out.shared, *alike))


def _shared(family: int, std: Tensor, label: Tensor, like: Tensor) -> Shared:
    return Shared(family, std.expand(like.shape), label.expand(like.shape))


def _first_label() -> int:
    """Where labels begin that no other sequence has."""
    return next(_sequences) * LABELS
