"""Floating-point formats: spacing, range and representability, in float64 arithmetic."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Format(NamedTuple):
    """A binary format: ``precision`` significant bits, smallest normal ``2**emin``, largest finite ``largest``."""

    dtype: torch.dtype
    precision: int
    emin: int
    largest: float


FORMATS = {
    "float64": Format(torch.float64, 53, -1022, torch.finfo(torch.float64).max),
    "float32": Format(torch.float32, 24, -126, torch.finfo(torch.float32).max),
    "bfloat16": Format(torch.bfloat16, 8, -126, torch.finfo(torch.bfloat16).max),
    "float16": Format(torch.float16, 11, -14, torch.finfo(torch.float16).max),
    "float8_e4m3fn": Format(torch.float8_e4m3fn, 4, -6, 448.0),
    # Integers on a uniform grid of spacing 1: no binade changes the spacing.
    "int8": Format(torch.int8, 1, 0, 127.0),
}


def half_ulp(v: Tensor, fmt: Format) -> Tensor:
    """Half the spacing of ``fmt`` around ``v``: the largest error of rounding a value of that size to nearest."""
    if fmt.dtype is torch.int8:
        return torch.full_like(v, 0.5)
    # frexp gives |v| = m 2^e with m in [0.5, 1), so the binade's exponent is e - 1, without a logarithm's error.
    exponent = torch.frexp(v.abs().clamp_min(2.0**fmt.emin)).exponent - 1
    return torch.ldexp(torch.ones_like(v), exponent - fmt.precision)


def lowest_bit(v: Tensor) -> Tensor:
    """The largest power of two of which ``v`` (float64) is a multiple: infinite for 0, which is one of all."""
    mantissa, exponent = torch.frexp(v)
    whole = (mantissa * 2.0**53).to(torch.int64)
    return torch.where(v == 0, torch.inf, torch.ldexp((whole & -whole).to(torch.float64), exponent - 53))


def rounding_variance(v: Tensor, fmt: Format, grid: Tensor) -> Tensor:
    """Variance of rounding a number near ``v``, somewhere on multiples of ``grid``, to the nearest of ``fmt``.

    Of the ``n`` points of the grid in one spacing ``u = n grid`` the errors are ``0, +-grid, .. +-u/2``, the last at a
    tie and half as likely either way: ``u^2/12 + grid^2/6``, half as much again as uniform noise for ``n = 2``. Ties
    go to even, as often down as up, so the mean is 0. A grid as coarse as the spacing leaves nothing to round.
    """
    spacing = 2 * half_ulp(v, fmt)
    return torch.where(grid < spacing, spacing.square() / 12 + grid.square() / 6, 0.0)


def representable(v: Tensor, fmt: Format) -> Tensor:
    """Elements of ``v`` (float64) that ``fmt`` holds exactly."""
    return v.to(fmt.dtype).to(torch.float64) == v


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``: the name contracts, cases and records use."""
    return str(dtype).removeprefix("torch.")
