"""Division by a number that the host knows, as ``divisor.cuh`` does it."""

from __future__ import annotations

import ctypes


class Divisor(ctypes.Structure):
    """What divides by a number: x / number = x * magic >> shift for x from 0 to 2^31 - 1."""

    _fields_ = [("magic", ctypes.c_uint), ("shift", ctypes.c_uint)]


def divisor(number: int) -> Divisor:
    """The divisor of a number from 1 to 2^31.

    magic = ceil(2^shift / number), shift = 31 + ceil(log2(number)). Magic is less than 1 too large, so x * magic /
    2^shift is too large by less than x / 2^shift < 1 / number, which no quotient's floor sees.

    Raises ValueError for other numbers.
    """
    if not 1 <= number <= 1 << 31:
        raise ValueError(f"number={number} must be 1..{1 << 31}: magic has 32 bits; divide otherwise")
    shift = 31 + (number - 1).bit_length()
    return Divisor(-(-(1 << shift) // number), shift)
