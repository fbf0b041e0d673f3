"""Plain torch the other way round: sums run in blocks from the last term, and of equal scores the higher id wins.

It is right wherever an op promises neither, and shares no rounding of a sum with the plain provider: a control of what
the budget says about orders of summation and of how ties are judged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers import plain

BLOCK = 24
"""Terms of a partial sum: no multiple of a vector register."""


def backwards(device: str = "cpu") -> Provider:
    """Plain torch on ``device``, its sums and ties the other way round."""
    return Provider(name="backwards", device=device, functions=function_of)


def function_of(name: str) -> Callable[..., Any] | None:
    """An op, or a packing function, which neither sums nor chooses."""
    found = plain.function_of(name)
    if found is None or name.startswith("pack_"):
        return found

    def call(*positional: Any, **keywords: Any) -> Any:
        with Backwards():
            return found(*positional, **keywords)

    call.__name__ = name
    return call


class Backwards(TorchFunctionMode):
    """Makes products, sums and stable sorts of plain tensors run from the end."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("matmul", "__matmul__") and args[0].ndim > 1 and args[1].ndim > 1:
            return _product(*args)
        if name in ("sum", "mean") and args[0].is_floating_point() and args[1:] == (-1,):
            return _total(args[0], **given) / (args[0].shape[-1] if name == "mean" else 1)
        if name == "einsum":
            return func(args[0], *_flipped(*args))
        if name == "sort" and given.get("stable"):
            return _sorted(args[0], given)
        return func(*args, **given)


def _product(a: Tensor, b: Tensor) -> Tensor:
    starts = range(0, max(a.shape[-1], 1), BLOCK)
    parts = [a[..., s : s + BLOCK] @ b[..., s : s + BLOCK, :] for s in reversed(starts)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _total(x: Tensor, *, keepdim: bool = False) -> Tensor:
    total = x.new_zeros((*x.shape[:-1], 1))
    for block in reversed(x.split(BLOCK, -1)):
        total = total + block.flip(-1).sum(-1, keepdim=True)
    return total if keepdim else total[..., 0]


def _flipped(equation: str, *factors: Tensor) -> list[Tensor]:
    """Factors with what an einsum adds up in the other order."""
    inputs, _, output = equation.partition("->")
    letters = zip(inputs.split(","), factors, strict=True)
    return [x.flip([i for i, letter in enumerate(own) if letter not in output]) for own, x in letters]


def _sorted(x: Tensor, given: dict[str, Any]) -> Any:
    """Stable from the end: the last of equals comes first."""
    dim = given.get("dim", -1)
    values, places = x.flip(dim).sort(**given)
    return torch.return_types.sort((values, x.shape[dim] - 1 - places))
