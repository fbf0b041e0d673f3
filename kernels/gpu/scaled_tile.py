"""Tiles of a product whose weight is e4m3 with a scale a block: loads, quantisation, one exact step of the sum."""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.gpu.codes import e4m3_code, group_scales, quotients
from minimax_m2.kernels.launched import power_of_two


def evenly(size: int, width: int) -> bool:
    """Whether steps of ``width`` channels fill ``size`` and a tile of tl.dot exactly: then no load needs a mask."""
    return size % width == 0 and width == max(32, power_of_two(width))


@triton.jit
def factor(codes, HARDWARE: tl.constexpr):
    """e4m3 codes as a factor of tl.dot: themselves where tensor cores take them, else float16, which holds them all."""
    if HARDWARE:
        value = codes.to(tl.float8e4nv, bitcast=True)
    else:
        bits = codes.to(tl.int32)
        # The exponent's bias grows from 7 to 15 by a product, which handles codes below the normal numbers too.
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
        value = tl.where((bits & 0x7F) == 0x7F, float("nan"), half * 256.0)
    return value


@triton.jit
def quantised_rows(x_ptr, rows, row_ok, stride, start, width, size, BLOCK: tl.constexpr, EVEN: tl.constexpr,
                   HARDWARE: tl.constexpr):  # fmt: skip
    """Channels ``start .. start + width`` of some rows as codes ``[rows, BLOCK]`` and the scale of each row."""
    x = channels(x_ptr, rows, row_ok, stride, start, width, size, BLOCK, EVEN).to(tl.float32)
    scale = group_scales(x, 448.0, False)
    return e4m3_code(quotients(x, scale, 448.0), HARDWARE), scale


@triton.jit
def channels(x_ptr, rows, row_ok, stride, start, width, size, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """``x[rows, start .. start + width]``, 0 where there is none. EVEN: every step has BLOCK channels."""
    within = tl.arange(0, BLOCK)
    if EVEN:
        inside = row_ok[:, None]
    else:
        inside = row_ok[:, None] & ((within < width) & (start + within < size))[None, :]
    return tl.load(x_ptr + start + (rows[:, None] * stride + within[None, :]), mask=inside, other=0)


@triton.jit
def weight_tile(base_ptr, lane, lane_ok, stride, start, width, size, BLOCK: tl.constexpr, EVEN: tl.constexpr,
                FULL: tl.constexpr):  # fmt: skip
    """``[BLOCK, lanes]`` of the same channels of some output columns, lane 0 at ``base_ptr``; FULL: all lanes exist.

    The base is 64 bits wide and a scalar; offsets within a tile fit 32, which halves the registers of its pointers.
    """
    within = tl.arange(0, BLOCK)
    place = base_ptr + start + (lane[None, :] * stride + within[:, None])
    if EVEN and FULL:
        tile = tl.load(place)
    else:
        tile = tl.load(place, mask=lane_ok[None, :] & ((within < width) & (start + within < size))[:, None], other=0)
    return tile


@triton.jit
def scaled(product, row_scale, scale_ptr, column, column_ok, block_rows, stride, step, ONE_SCALE: tl.constexpr):
    """A group's sums times the scales of both factors. ONE_SCALE: all columns of the tile lie in one block of rows."""
    if ONE_SCALE:
        factors = (row_scale * tl.load(scale_ptr + tl.min(column, 0) // block_rows * stride + step))[:, None]
    else:
        scale = tl.load(scale_ptr + column // block_rows * stride + step, mask=column_ok, other=0.0)
        factors = row_scale[:, None] * scale[None, :]
    return product * factors
