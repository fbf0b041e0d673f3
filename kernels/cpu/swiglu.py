"""SwiGLU on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import swiglu as swiglu_schema
from minimax_m2.kernels.schema.rms_norm import check_output

extension.load("swiglu")

# The binding checks what it reads; the checks in Python say what was refused.
_swiglu = torch.ops.minimax_m2.swiglu.default

contract = {"exp_ulps": 1.1}


def swiglu(gate_up: Tensor) -> Tensor:
    """Gate the upper half of each row by SiLU of the lower half.

        gate, up = halves(gate_up);  y = gate * sigmoid(gate) * up

    gate_up [T, 2*I] float32, bfloat16 or float16, gate first, row stride free
    returns [T, I] dtype of gate_up, contiguous

    float32 in between, exp within 1.1 ulp; one rounding, of y. Threads change no bit.

    Raises ValueError or TypeError for an odd width and for shapes, dtypes and strides outside the above.
    """
    try:
        y = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=gate_up.dtype, device=gate_up.device)
        _swiglu(gate_up, y)
    except schema.REFUSED:
        swiglu_schema.check(gate_up)
        raise
    return y


def swiglu_out(gate_up: Tensor, y: Tensor) -> None:
    """Do what ``swiglu`` does, into ``y``, contiguous ``[T, I]``."""
    try:
        _swiglu(gate_up, y)
    except schema.REFUSED:
        swiglu_schema.check(gate_up)
        shape = (gate_up.shape[0], gate_up.shape[1] // 2)
        check_output("y", y, shape=shape, symbols="[T, I]", dtype=gate_up.dtype, device=gate_up.device)
        raise
