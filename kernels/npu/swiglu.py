"""SwiGLU, the gated activation of every expert, on an NPU."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels.launched import swiglu as launched
from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.swiglu_rows import swiglu_kernel

STEP = 2048


def _launch(gate_up: Tensor, y: Tensor) -> None:
    rows, I = y.shape
    swiglu_kernel[programs(rows, y)](gate_up, y, rows, gate_up.stride(0), I, STEPS=-(-I // STEP), STEP=STEP)


swiglu, swiglu_out = launched.functions(registered("swiglu", _launch))
