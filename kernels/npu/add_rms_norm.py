"""Residual addition, then RMSNorm, on an NPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.rms_norm import LANES, block_of, check_width
from minimax_m2.kernels.npu.rms_norm_rows import add_rms_norm_kernel
from minimax_m2.kernels.schema import add_rms_norm as add_rms_norm_schema


def _launch(x: Tensor, residual: Tensor, weight: Tensor, eps: float, y: Tensor, residual_out: Tensor) -> None:
    rows, H = x.shape
    add_rms_norm_kernel[programs(rows, x)](
        x, residual, weight, y, residual_out, rows, x.stride(0), residual.stride(0), H, float(H), eps,
        LANES=LANES, BLOCK=block_of(H),
    )  # fmt: skip


_call = registered("add_rms_norm", _launch)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Add ``x`` to the residual stream and normalise the sum.

        z = x + residual;  y = z * rsqrt(mean(z^2) + eps) * weight

    x, residual  [T, H] float32, bfloat16 or float16, row strides free
    weight       [H] dtype of x
    returns      y, z, each [T, H] dtype of x, contiguous

    Statistics and y see the sum before it is stored (convention B); each output rounds once. H up to 4096.

    Raises ValueError or TypeError for shapes, dtypes, strides and devices outside the above.
    """
    add_rms_norm_schema.check(x, residual, weight)
    check_width(x.shape[1])

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
    check_width(x.shape[1])
    add_rms_norm_schema.check_outputs(y, residual_out, x=x)

    if y.numel() > 0:
        _call(x, residual, weight, eps, y, residual_out)
