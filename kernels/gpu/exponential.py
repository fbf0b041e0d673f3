"""exp and sigmoid within a unit in the last place, where Triton's own lose accuracy with the size of the argument.

And a sigmoid of a few units, at a third of the instructions, for what is rounded to 16 bits or fewer.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp(x):
    """e^x, float32, below 1 ulp.

    Triton's exp is the hardware's 2^(x * log2(e)): the rounded product alone costs 80 ulp at x = 80, and the
    hardware's error is one-sided, which a sum over many outputs shows. So x = n * ln 2 + r is cut with ln 2 in two
    words, e^r is a polynomial (its remainder r^8 / 8! is 5e-9 at r = ln(2) / 2), and 2^n is made from its bits.
    """
    # From -104 down it is 0, as a polynomial of -1e8 is not; NaN stays.
    x = tl.where(x < -104.0, -104.0, x)
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    n = tl.minimum(tl.maximum(n, -151.0), 129.0)
    r = tl.fma(n, -0.693145751953125, x)
    r = tl.fma(n, -1.428606765330187e-06, r)
    p = tl.fma(r, 1.0 / 5040, 1.0 / 720)
    p = tl.fma(r, p, 1.0 / 120)
    p = tl.fma(r, p, 1.0 / 24)
    p = tl.fma(r, p, 1.0 / 6)
    p = tl.fma(r, p, 0.5)
    p = tl.fma(r * r, p, r) + 1.0
    # In two steps: a result below the normal numbers, or 2^128, has no power of two of its own.
    half = tl.floor(n * 0.5)
    return p * _power(half) * _power(n - half)


@triton.jit
def _power(n):
    """2^n of a whole float32 n in -126..127, from its bits."""
    return ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), float32, 0 where e^-x overflows."""
    return tl.div_rn(1.0, 1.0 + exp(-x))


@triton.jit
def quick_sigmoid(x):
    """1 / (1 + e^-x) within 8 ulp, by the hardware's 2^t; never NaN for a number, 0 below -104."""
    y = tl.maximum(-tl.abs(x), -104.0)
    t = y * 1.4426950408889634
    # What rounding took from t: log2(e) in two words.
    rest = tl.fma(y, 1.925963033500912e-08, tl.fma(y, 1.4426950216293335, -t))
    # In two steps: the hardware gives 0 where a power is no normal number.
    half = tl.exp2(t * 0.5)
    e = half * (half * tl.fma(rest, 0.6931471805599453, 1.0))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)
