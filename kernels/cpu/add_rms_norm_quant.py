"""Residual addition, RMSNorm and quantisation in one pass, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import add_rms_norm_quant as add_rms_norm_quant_schema
from minimax_m2.kernels.schema import block_quant as block_quant_schema

extension.load("add_rms_norm_quant")


def add_rms_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, group: int = 128
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise ``y`` of ``y, residual = add_rms_norm(x, residual, weight)`` in groups of a row.

    x, residual  [T, H] float32, bfloat16 or float16, row strides free
    weight       [H] dtype of x
    returns      q [T, H] e4m3, scale [T, ceil(H/group)] float32, residual [T, H] dtype of x, contiguous

    y stays in float32. Threads change no bit.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    add_rms_norm_quant_schema.check(x, residual, weight, group=group)

    q, scale = block_quant_schema.allocated(*x.shape, group=group, dtype=torch.float8_e4m3fn, device=x.device)
    residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    if q.numel() > 0:
        torch.ops.minimax_m2.add_rms_norm_quant(x, residual, weight, eps, group, q, scale, residual_out)
    return q, scale, residual_out


def add_rms_norm_quant_out(
    x: Tensor, residual: Tensor, weight: Tensor, q: Tensor, scale: Tensor, residual_out: Tensor, *,
    eps: float, group: int = 128,
) -> None:  # fmt: skip
    """Do what ``add_rms_norm_quant`` does, into contiguous outputs; ``residual_out`` may be ``residual``."""
    add_rms_norm_quant_schema.check(x, residual, weight, group=group)
    add_rms_norm_quant_schema.check_outputs(q, scale, residual_out, x=x, group=group)

    if q.numel() > 0:
        torch.ops.minimax_m2.add_rms_norm_quant(x, residual, weight, eps, group, q, scale, residual_out)
