"""Residual addition, then RMSNorm, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import on_device_of, power_of_two, registered
from minimax_m2.kernels.gpu.rms_norm import row_scale, warps_of
from minimax_m2.kernels.schema import add_rms_norm as add_rms_norm_schema


@triton.jit
def add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, residual_out_ptr, x_stride, residual_stride, H, width, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK)
    inside = h < H
    x = tl.load(x_ptr + t * x_stride + h, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + t * residual_stride + h, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + h, mask=inside, other=0.0).to(tl.float32)
    z = x + residual
    tl.store(residual_out_ptr + t * H + h, z.to(residual_out_ptr.dtype.element_ty), mask=inside)
    y = z * row_scale(z * z, width, eps) * weight
    tl.store(y_ptr + t * H + h, y.to(y_ptr.dtype.element_ty), mask=inside)


def _launch(x: Tensor, residual: Tensor, weight: Tensor, eps: float, y: Tensor, residual_out: Tensor) -> None:
    num_tokens, H = x.shape
    block = power_of_two(H)
    with on_device_of(x):
        add_rms_norm_kernel[(num_tokens,)](
            x, residual, weight, y, residual_out, x.stride(0), residual.stride(0), H, float(H), eps,
            BLOCK=block, num_warps=warps_of(block),
        )  # fmt: skip


_call = registered("add_rms_norm", _launch)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Add ``x`` to the residual stream and normalise the sum.

        z = x + residual;  y = z * rsqrt(mean(z^2) + eps) * weight

    x, residual  [T, H] float32, bfloat16 or float16, row strides free
    weight       [H] dtype of x
    returns      y, z, each [T, H] dtype of x, contiguous

    Statistics and y see the sum before it is stored (convention B); each output rounds once. One program a row.

    Raises ValueError or TypeError for shapes, dtypes, strides and devices outside the above.
    """
    add_rms_norm_schema.check(x, residual, weight)

    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    if y.numel() > 0:
        _call(x, residual, weight, eps, y, residual_out)
    return y, residual_out


def add_rms_norm_out(
    x: Tensor, residual: Tensor, weight: Tensor, y: Tensor, residual_out: Tensor, *, eps: float
) -> None:
    """Do what ``add_rms_norm`` does, into contiguous ``y`` and ``residual_out``; they may be x and residual."""
    add_rms_norm_schema.check(x, residual, weight)
    add_rms_norm_schema.check_outputs(y, residual_out, x=x)

    if y.numel() > 0:
        _call(x, residual, weight, eps, y, residual_out)
