"""Residual addition, then RMSNorm, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import add_rms_norm as add_rms_norm_schema

extension.load("add_rms_norm")

# The binding checks what it reads; the checks in Python say what was refused.
_add_rms_norm = torch.ops.minimax_m2.add_rms_norm.default


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Add ``x`` to the residual stream and normalise the sum.

        z = x + residual;  y = z * rsqrt(mean(z^2) + eps) * weight

    x, residual  [T, H] float32, bfloat16 or float16, row strides free
    weight       [H] dtype of x
    returns      y, z, each [T, H] dtype of x, contiguous

    Statistics and y see the sum before it is stored (convention B); each output rounds once. Threads change no bit.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    try:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _add_rms_norm(x, residual, weight, eps, y, residual_out)
    except schema.REFUSED:
        add_rms_norm_schema.check(x, residual, weight)
        raise
    return y, residual_out


def add_rms_norm_out(
    x: Tensor, residual: Tensor, weight: Tensor, y: Tensor, residual_out: Tensor, *, eps: float
) -> None:
    """Do what ``add_rms_norm`` does, into contiguous ``y`` and ``residual_out``; they may be x and residual."""
    try:
        _add_rms_norm(x, residual, weight, eps, y, residual_out)
    except schema.REFUSED:
        add_rms_norm_schema.check(x, residual, weight)
        add_rms_norm_schema.check_outputs(y, residual_out, x=x)
        raise
