"""Rows of an e4m3 weight against one quantised row of x, by float32 multiply-adds: all loads are in flight at once.

For so few tokens that the weight's bytes set the time and a tensor core would stand mostly empty.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.gpu.codes import e4m3_code, group_scales, quotients
from minimax_m2.kernels.gpu.scaled_tile import factor
from minimax_m2.kernels.launched import power_of_two

# Codes of one row that a step covers, and the steps whose tiles a program holds in registers.
STEP = 1024
MOST_STEPS = 6


def steps_of(size: int, width: int) -> tuple[int, int, int]:
    """Groups and lanes of a step for rows of ``size`` codes in groups of ``width``, and the steps."""
    block, groups = power_of_two(width), triton.cdiv(size, width)
    widest = max(1, STEP // block)
    while widest > 4 and groups % widest:
        widest //= 2
    held = min(widest, power_of_two(groups))
    return held, block, triton.cdiv(groups, held)


def fits(size: int, width: int) -> bool:
    """Whether a program can hold whole rows."""
    return power_of_two(width) <= STEP and steps_of(size, width)[2] <= MOST_STEPS


@triton.jit
def code_tiles(row_ptr, stride, lanes: tl.constexpr, lane_ok, width, size,
               GROUPS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """Some rows of the weight as one tile ``[lanes, GROUPS, BLOCK]`` a step."""
    lane, group, within = tl.arange(0, lanes), tl.arange(0, GROUPS), tl.arange(0, BLOCK)
    rows = row_ptr + lane.to(tl.int64) * stride
    place = rows[:, None, None] + (group[:, None] * width + within[None, :])[None, :, :]
    tiles = ()
    for step in tl.static_range(STEPS):
        at = step * GROUPS * width
        if EVEN:
            inside = lane_ok[:, None, None]
        else:
            h = at + group[:, None] * width + within[None, :]
            inside = lane_ok[:, None, None] & ((within[None, :] < width) & (h < size))[None, :, :]
        tiles = tiles + (tl.load(place + at, mask=inside, other=0),)  # noqa: RUF005 - jit unpacks none
    return tiles


@triton.jit
def scale_tiles(scale_ptr, block, lane_ok, stride, num_groups, GROUPS: tl.constexpr, STEPS: tl.constexpr):
    """The scales of those rows, which lie in row blocks ``block``, as one tile ``[lanes, GROUPS]`` a step."""
    rows, tiles = scale_ptr + block.to(tl.int64) * stride, ()
    for step in tl.static_range(STEPS):
        g = step * GROUPS + tl.arange(0, GROUPS)
        inside = lane_ok[:, None] & (g < num_groups)[None, :]
        tiles = tiles + (tl.load(rows[:, None] + g[None, :], mask=inside, other=0.0),)  # noqa: RUF005
    return tiles


@triton.jit
def quantised_groups(x_ptr, scale_ptr, ok, step, width, size, num_groups, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
                     CODED: tl.constexpr, HARDWARE: tl.constexpr):  # fmt: skip
    """One step of a row of x: its codes as float32 ``[GROUPS, BLOCK]`` and the scale of each group."""
    group, within = step * GROUPS + tl.arange(0, GROUPS), tl.arange(0, BLOCK)
    h = group[:, None] * width + within[None, :]
    x = tl.load(x_ptr + h, mask=ok & (within < width)[None, :] & (h < size), other=0)
    if CODED:
        codes = x
        scale = tl.load(scale_ptr + group, mask=ok & (group < num_groups), other=0.0)
    else:
        values = x.to(tl.float32)
        scale = group_scales(values, 448.0, False)
        codes = e4m3_code(quotients(values, scale, 448.0), HARDWARE)
    return factor(codes, HARDWARE).to(tl.float32), scale


@triton.jit
def group_sums(codes, q, q_scale, scales, HARDWARE: tl.constexpr):
    """``[lanes, GROUPS]``: the sum of each group's products, times both scales."""
    return tl.sum(factor(codes, HARDWARE).to(tl.float32) * q[None, :, :], 2) * (q_scale[None, :] * scales)
