"""Budget rules of data movement: what is copied keeps its error, and copies of one number share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.budget import Budgeted, Shared, element_labels, grid_of, new_shared, rule


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


def anyone(*operands: Any) -> Budgeted:
    """The first operand that carries a budget."""
    return next(x for x in operands if isinstance(x, Budgeted))


@rule("cat", "concat", "concatenate")
def _cat(tensors: Any, dim: int = 0) -> Budgeted:
    return _joined([lift(t, anyone(*tensors)) for t in tensors], lambda parts: torch.cat(parts, dim))


@rule("stack")
def _stack(tensors: Any, dim: int = 0) -> Budgeted:
    return _joined([lift(t, anyone(*tensors)) for t in tensors], lambda parts: torch.stack(parts, dim))


def _joined(parts: list[Budgeted], join: Callable[[list[Tensor]], Tensor]) -> Budgeted:
    # A part may hold one source several times: a rotated channel has the errors of both channels of its pair.
    sources = sorted({s.source for p in parts for s in p.shared})
    held = [[[s for s in p.shared if s.source == source] for p in parts] for source in sources]
    shared = []
    for source, i, each in ((so, i, h) for so, h in zip(sources, held, strict=True) for i in range(max(map(len, h)))):
        found = [same[i] if i < len(same) else None for same in each]
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
        grid=None if all(p.grid is None for p in parts) else join([grid_of(p) for p in parts]),
    )


def _join_optional(
    fields: list[Tensor | None], parts: list[Budgeted], join: Callable[[list[Tensor]], Tensor]
) -> Tensor | None:
    if all(f is None for f in fields):
        return None
    return join([torch.zeros_like(p.value) if f is None else f for f, p in zip(fields, parts, strict=True)])


@rule("where")
def where(condition: Tensor, a: Any, b: Any) -> Budgeted:
    like = anyone(a, b)
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
