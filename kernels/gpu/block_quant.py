"""Quantise activations to e4m3 in groups along a row, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.codes import e4m3_code, group_scales, quotients
from minimax_m2.kernels.gpu.launch import (
    capability,
    chained,
    converts_e4m3,
    on_device_of,
    registered,
    take_turn,
)
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.schema import block_quant as block_quant_schema

# Values of one program; a wider group is a program of its own.
TILE = 4096

contract = {"reciprocal": "float32"}


@triton.jit
def block_quant_kernel(
    x_ptr, q_ptr, scale_ptr, stride, H, group, num_groups,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, POWER_OF_TWO: tl.constexpr, HARDWARE: tl.constexpr,
    EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    take_turn(EARLY, FOLLOWED)
    t = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    within = tl.arange(0, WIDTH)
    h = g[:, None] * group + within[None, :]
    inside = (within < group)[None, :] & (h < H)
    x = tl.load(x_ptr + t * stride + h, mask=inside, other=0.0).to(tl.float32)
    scale = group_scales(x, 448.0, POWER_OF_TWO)
    tl.store(q_ptr + t * H + h, e4m3_code(quotients(x, scale, 448.0), HARDWARE), mask=inside)
    tl.store(scale_ptr + t * num_groups + g, scale, mask=g < num_groups)


def quantise(
    x: Tensor, group: int, power_of_two_scale: bool, q: Tensor, scale: Tensor, settled: bool = False
) -> None:  # fmt: skip
    """Launch the quantisation.

    settled  the next launch begins after all kernels before this one, and may read at once what they wrote
    """
    (num_tokens, H), num_groups = x.shape, scale.shape[1]
    used = min(group, H)
    programs, tile = group_tiles(used, num_groups)
    arch = capability(x)
    turn = chained(arch, num_tokens * programs * tile["num_warps"], tokens=0 if settled else num_tokens)
    with on_device_of(x):
        block_quant_kernel[(num_tokens, programs)](
            x, q.view(torch.uint8), scale, x.stride(0), H, used, num_groups, POWER_OF_TWO=power_of_two_scale,
            HARDWARE=converts_e4m3(arch), **tile, **turn,
        )  # fmt: skip


def group_tiles(group: int, num_groups: int) -> tuple[int, dict[str, int]]:
    """Programs that share a row, and the groups, width and warps of each."""
    width = power_of_two(group)
    groups = min(power_of_two(num_groups), max(1, TILE // width))
    tile = {"GROUPS": groups, "WIDTH": width, "num_warps": min(16, max(1, groups * width // 512))}
    return triton.cdiv(num_groups, groups), tile


_call = registered("block_quant", quantise)


def block_quant(x: Tensor, *, group: int = 128, scale_format: str = "float32") -> tuple[Tensor, Tensor]:
    """Scale each group of a row so that its largest magnitude is 448, and round to e4m3.

        scale = max(absmax(group), 1e-10) / 448;  q = e4m3(x / scale)

    x        [T, H] float32, bfloat16 or float16, row stride free
    returns  q [T, H] e4m3, scale [T, ceil(H/group)] float32, contiguous

    Values meet the rounded reciprocal of their scale and are rounded to nearest even. ``scale_format="ue8m0"`` rounds
    the scale up to a power of two. A NaN makes its group's scale and codes NaN.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    block_quant_schema.check(x, group=group, scale_format=scale_format)

    q, scale = block_quant_schema.allocated(*x.shape, group=group, dtype=torch.float8_e4m3fn, device=x.device)

    if q.numel() > 0:
        _call(x, group, scale_format == "ue8m0", q, scale)
    return q, scale


def block_quant_out(x: Tensor, q: Tensor, scale: Tensor, *, group: int = 128, scale_format: str = "float32") -> None:
    """Do what ``block_quant`` does, into contiguous ``q`` and ``scale``."""
    block_quant_schema.check(x, group=group, scale_format=scale_format)
    block_quant_schema.check_outputs(
        q, scale, shape=tuple(x.shape), symbol="H", group=group, dtype=torch.float8_e4m3fn, device=x.device
    )

    if q.numel() > 0:
        _call(x, group, scale_format == "ue8m0", q, scale)
