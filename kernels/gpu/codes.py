"""The 8-bit codes of quantised activations."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def e4m3_code(x, HARDWARE: tl.constexpr):
    """The e4m3 code of x, float32 within -448..448, to nearest even, as uint8; NaN has 0x7f.

    HARDWARE uses the conversion that sm_89 and later have; without it integers do the same, bit for bit.
    """
    if HARDWARE:
        code = x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        # Three bits of significand stay; the exponent's bias falls from 127 to 7.
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960
        # Below 2^-6 codes are multiples of 2^-9, the spacing of float32 at 2^14.
        small = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) & 0xFF
        unsigned = tl.where(size < 0x3C800000, small, normal)
        code = tl.where(x != x, 0x7F, unsigned | ((bits >> 24) & 0x80)).to(tl.uint8)
    return code


@triton.jit
def int8_code(x):
    """The nearest integer of x, float32 within -127..127, halves to even, as int8."""
    # 1.5 * 2^23: the spacing of float32 there is 1.
    return ((x + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def group_scales(y, LARGEST: tl.constexpr, POWER_OF_TWO: tl.constexpr):
    """One scale a row of ``y [groups, width]`` so that its largest magnitude gets the code LARGEST; NaN stays NaN."""
    # A maximum of floats passes NaN over; as integers, magnitudes have the same order and NaN is the largest.
    bits = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    absmax = tl.max(bits, 1).to(tl.float32, bitcast=True)
    scale = tl.div_rn(tl.where(absmax < 1e-10, 1e-10, absmax), LARGEST)
    if POWER_OF_TWO:
        up = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
        scale = tl.where(scale == scale, up, scale)
    return scale


@triton.jit
def quotients(y, scale, LARGEST: tl.constexpr):
    """``y [groups, width]`` times the rounded reciprocal of its group's scale, saturated; NaN stays NaN."""
    ratio = y * tl.div_rn(1.0, scale)[:, None]
    saturated = tl.where(ratio > LARGEST, LARGEST, ratio)
    return tl.where(saturated < -LARGEST, -LARGEST, saturated)
