"""SwiGLU and quantisation of its result in one pass, on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu import swiglu
from minimax_m2.kernels.gpu.codes import e4m3_code, group_scales, int8_code, quotients
from minimax_m2.kernels.gpu.launch import (
    capability,
    chained,
    converts_e4m3,
    on_device_of,
    registered,
    take_turn,
)
from minimax_m2.kernels.gpu.swiglu import MANY_TOKENS, activated, is_quick
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import swiglu_quant as launched

# Values of a program; a wider group is a program of its own.
TILE = 512


def contract(case: Mapping[str, Any]) -> dict[str, Any]:
    """As ``swiglu`` does; values meet the rounded reciprocal of their scale."""
    return swiglu.contract(case) | {"reciprocal": "float32"}


@triton.jit
def swiglu_quant_kernel(
    gate_up_ptr, q_ptr, scale_ptr, stride, I, group, num_groups,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, INT8: tl.constexpr, HARDWARE: tl.constexpr, QUICK: tl.constexpr,
    EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    take_turn(EARLY, FOLLOWED)
    t = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    within = tl.arange(0, WIDTH)
    i = g[:, None] * group + within[None, :]
    inside = (within < group)[None, :] & (i < I)
    row = gate_up_ptr + t * stride
    gate = tl.load(row + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + I + i, mask=inside, other=0.0).to(tl.float32)
    y = activated(gate, up, QUICK)
    if INT8:
        scale = group_scales(y, 127.0, False)
        code = int8_code(quotients(y, scale, 127.0))
    else:
        scale = group_scales(y, 448.0, False)
        code = e4m3_code(quotients(y, scale, 448.0), HARDWARE)
    tl.store(q_ptr + t * I + i, code, mask=inside)
    tl.store(scale_ptr + t * num_groups + g, scale, mask=g < num_groups)


def group_tiles(num_tokens: int, group: int, num_groups: int) -> tuple[int, dict[str, int]]:
    """Programs that share a row, and the groups, width and warps of each: of many tokens one warp does the most."""
    width = power_of_two(group)
    groups = min(power_of_two(num_groups), max(1, TILE // width))
    warps = groups * width // (512 if num_tokens >= MANY_TOKENS else 128)
    return triton.cdiv(num_groups, groups), {"GROUPS": groups, "WIDTH": width, "num_warps": min(16, max(1, warps))}


def _launch(gate_up: Tensor, group: int, q: Tensor, scale: Tensor) -> None:
    num_tokens, I = q.shape
    num_groups, int8 = scale.shape[1], q.dtype == torch.int8
    programs, tile = group_tiles(num_tokens, group, num_groups)
    arch = capability(gate_up)
    with on_device_of(gate_up):
        swiglu_quant_kernel[(num_tokens, programs)](
            gate_up, q if int8 else q.view(torch.uint8), scale, gate_up.stride(0), I, group, num_groups,
            INT8=int8, HARDWARE=converts_e4m3(arch), QUICK=is_quick(gate_up.dtype), **tile,
            **chained(arch, num_tokens * programs * tile["num_warps"]),
        )  # fmt: skip


swiglu_quant, swiglu_quant_out = launched.functions(registered("swiglu_quant", _launch))
