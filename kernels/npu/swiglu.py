"""SwiGLU, the gated activation of every expert, on an NPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.swiglu_rows import swiglu_kernel
from minimax_m2.kernels.schema import swiglu as swiglu_schema
from minimax_m2.kernels.schema.rms_norm import check_output

STEP = 2048


def _launch(gate_up: Tensor, y: Tensor) -> None:
    rows, I = y.shape
    swiglu_kernel[programs(rows, y)](gate_up, y, rows, gate_up.stride(0), I, STEPS=-(-I // STEP), STEP=STEP)


_call = registered("swiglu", _launch)


def swiglu(gate_up: Tensor) -> Tensor:
    """Gate the upper half of each row by SiLU of the lower half.

        gate, up = halves(gate_up);  y = gate * sigmoid(gate) * up

    gate_up [T, 2*I] float32, bfloat16 or float16, gate first, row stride free
    returns [T, I] dtype of gate_up, contiguous

    float32 in between; one rounding, of y.

    Raises ValueError or TypeError for an odd width and for shapes, dtypes and strides outside the above.
    """
    swiglu_schema.check(gate_up)

    y = torch.empty((gate_up.shape[0], gate_up.shape[1] // 2), dtype=gate_up.dtype, device=gate_up.device)

    if y.numel() > 0:
        _call(gate_up, y)
    return y


def swiglu_out(gate_up: Tensor, y: Tensor) -> None:
    """Do what ``swiglu`` does, into ``y``, contiguous ``[T, I]``."""
    swiglu_schema.check(gate_up)
    shape = (gate_up.shape[0], gate_up.shape[1] // 2)
    check_output("y", y, shape=shape, symbols="[T, I]", dtype=gate_up.dtype, device=gate_up.device)

    if y.numel() > 0:
        _call(gate_up, y)
