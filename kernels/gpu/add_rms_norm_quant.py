"""Residual addition, RMSNorm and quantisation in one pass, on a GPU."""

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
from minimax_m2.kernels.gpu.rms_norm import row_scale, warps_of
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.schema import add_rms_norm_quant as add_rms_norm_quant_schema
from minimax_m2.kernels.schema import block_quant as block_quant_schema

contract = {"reciprocal": "float32"}


@triton.jit
def add_rms_norm_quant_kernel(
    x_ptr, residual_ptr, weight_ptr, q_ptr, scale_ptr, residual_out_ptr, x_stride, residual_stride, H, width, eps,
    group, num_groups, GROUPS: tl.constexpr, WIDTH: tl.constexpr, HARDWARE: tl.constexpr, EARLY: tl.constexpr,
    FOLLOWED: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, GROUPS)
    within = tl.arange(0, WIDTH)
    h = g[:, None] * group + within[None, :]
    inside = (within < group)[None, :] & (h < H)
    weight = tl.load(weight_ptr + h, mask=inside, other=0.0).to(tl.float32)
    take_turn(EARLY, FOLLOWED)
    x = tl.load(x_ptr + t * x_stride + h, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + t * residual_stride + h, mask=inside, other=0.0).to(tl.float32)
    z = x + residual
    tl.store(residual_out_ptr + t * H + h, z.to(residual_out_ptr.dtype.element_ty), mask=inside)
    y = z * row_scale(tl.sum(z * z, 1), width, eps) * weight
    scale = group_scales(y, 448.0, False)
    tl.store(q_ptr + t * H + h, e4m3_code(quotients(y, scale, 448.0), HARDWARE), mask=inside)
    tl.store(scale_ptr + t * num_groups + g, scale, mask=g < num_groups)


def _launch(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, group: int, q: Tensor, scale: Tensor, residual_out: Tensor
) -> None:
    num_tokens, H = x.shape
    used, num_groups = min(group, H), scale.shape[1]
    groups, width = power_of_two(num_groups), power_of_two(used)
    warps, arch = warps_of(groups * width), capability(x)
    with on_device_of(x):
        add_rms_norm_quant_kernel[(num_tokens,)](
            x, residual, weight, q.view(torch.uint8), scale, residual_out, x.stride(0), residual.stride(0), H,
            float(H), eps, used, num_groups, GROUPS=groups, WIDTH=width,
            HARDWARE=converts_e4m3(arch), num_warps=warps, **chained(arch, num_tokens * warps, tokens=num_tokens),
        )  # fmt: skip


_call = registered("add_rms_norm_quant", _launch)


def add_rms_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, group: int = 128
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise ``y`` of ``y, residual = add_rms_norm(x, residual, weight)`` in groups of a row.

    x, residual  [T, H] float32, bfloat16 or float16, row strides free
    weight       [H] dtype of x
    returns      q [T, H] e4m3, scale [T, ceil(H/group)] float32, residual [T, H] dtype of x, contiguous

    y stays in float32 and meets the rounded reciprocal of its scale. One program a row.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    add_rms_norm_quant_schema.check(x, residual, weight, group=group)

    q, scale = block_quant_schema.allocated(*x.shape, group=group, dtype=torch.float8_e4m3fn, device=x.device)
    residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    if q.numel() > 0:
        _call(x, residual, weight, eps, group, q, scale, residual_out)
    return q, scale, residual_out


def add_rms_norm_quant_out(
    x: Tensor, residual: Tensor, weight: Tensor, q: Tensor, scale: Tensor, residual_out: Tensor, *,
    eps: float, group: int = 128,
) -> None:  # fmt: skip
    """Do what ``add_rms_norm_quant`` does, into contiguous outputs; ``residual_out`` may be ``residual``."""
    add_rms_norm_quant_schema.check(x, residual, weight, group=group)
    add_rms_norm_quant_schema.check_outputs(q, scale, residual_out, x=x, group=group)

    if q.numel() > 0:
        _call(x, residual, weight, eps, group, q, scale, residual_out)
