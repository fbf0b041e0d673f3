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


def representable(v: Tensor, fmt: Format) -> Tensor:
    """Elements of ``v`` (float64) that ``fmt`` holds exactly."""
    return v.to(fmt.dtype).to(torch.float64) == v


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``: the name contracts, cases and records use."""
    return str(dtype).removeprefix("torch.")
