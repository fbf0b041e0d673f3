"""Residual addition, RMSNorm and quantisation in one pass, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import add_rms_norm_quant as add_rms_norm_quant_schema
from minimax_m2.kernels.schema.rms_norm import check_output

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

    num_tokens, hidden = x.shape
    q = torch.empty((num_tokens, hidden), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((num_tokens, -(-hidden // group)), dtype=torch.float32, device=x.device)
    residual_out = torch.empty((num_tokens, hidden), dtype=x.dtype, device=x.device)

    if q.numel() > 0:
        torch.ops.minimax_m2.add_rms_norm_quant(x, residual, weight, eps, group, q, scale, residual_out)
    return q, scale, residual_out


def add_rms_norm_quant_out(
    x: Tensor, residual: Tensor, weight: Tensor, q: Tensor, scale: Tensor, residual_out: Tensor, *,
    eps: float, group: int = 128,
) -> None:  # fmt: skip
    """Do what ``add_rms_norm_quant`` does, into contiguous outputs; ``residual_out`` may be ``residual``."""
    add_rms_norm_quant_schema.check(x, residual, weight, group=group)
    shape, grid = tuple(x.shape), (x.shape[0], -(-x.shape[1] // group))
    check_output("q", q, shape=shape, symbols="[T, H]", dtype=torch.float8_e4m3fn, device=x.device)
    check_output("scale", scale, shape=grid, symbols="[T, ceil(H/group)]", dtype=torch.float32, device=x.device)
    check_output("residual_out", residual_out, shape=shape, symbols="[T, H]", dtype=x.dtype, device=x.device)

    if q.numel() > 0:
        torch.ops.minimax_m2.add_rms_norm_quant(x, residual, weight, eps, group, q, scale, residual_out)
