"""Residual addition, then RMSNorm, on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import capability, chained, on_device_of, registered, take_turn
from minimax_m2.kernels.gpu.rms_norm import row_scale, warps_of
from minimax_m2.kernels.launched import add_rms_norm as launched
from minimax_m2.kernels.launched import power_of_two


@triton.jit
def add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, residual_out_ptr, x_stride, residual_stride, H, width, eps,
    BLOCK: tl.constexpr, EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK)
    inside = h < H
    weight = tl.load(weight_ptr + h, mask=inside, other=0.0).to(tl.float32)
    take_turn(EARLY, FOLLOWED)
    x = tl.load(x_ptr + t * x_stride + h, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + t * residual_stride + h, mask=inside, other=0.0).to(tl.float32)
    z = x + residual
    tl.store(residual_out_ptr + t * H + h, z.to(residual_out_ptr.dtype.element_ty), mask=inside)
    y = z * row_scale(z * z, width, eps) * weight
    tl.store(y_ptr + t * H + h, y.to(y_ptr.dtype.element_ty), mask=inside)


def _launch(x: Tensor, residual: Tensor, weight: Tensor, eps: float, y: Tensor, residual_out: Tensor) -> None:
    num_tokens, H = x.shape
    block = power_of_two(H)
    warps = warps_of(block)
    with on_device_of(x):
        add_rms_norm_kernel[(num_tokens,)](
            x, residual, weight, y, residual_out, x.stride(0), residual.stride(0), H, float(H), eps,
            BLOCK=block, num_warps=warps, **chained(capability(x), num_tokens * warps, tokens=num_tokens),
        )  # fmt: skip


add_rms_norm, add_rms_norm_out = launched.functions(registered("add_rms_norm", _launch))
