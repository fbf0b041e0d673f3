"""Residual addition, then RMSNorm, on an NPU."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels.launched import add_rms_norm as launched
from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.rms_norm import LANES, block_of
from minimax_m2.kernels.npu.rms_norm_rows import add_rms_norm_kernel


def _launch(x: Tensor, residual: Tensor, weight: Tensor, eps: float, y: Tensor, residual_out: Tensor) -> None:
    rows, H = x.shape
    add_rms_norm_kernel[programs(rows, x)](
        x, residual, weight, y, residual_out, rows, x.stride(0), residual.stride(0), H, float(H), eps,
        LANES=LANES, BLOCK=block_of(H),
    )  # fmt: skip


add_rms_norm, add_rms_norm_out = launched.functions(registered("add_rms_norm", _launch))
