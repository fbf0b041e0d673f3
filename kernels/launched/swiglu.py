"""SwiGLU, the gated activation of every expert, on a device to which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimax_m2.kernels.launched import Launch
from minimax_m2.kernels.schema import swiglu as swiglu_schema
from minimax_m2.kernels.schema.rms_norm import check_output


def functions(launch: Launch) -> tuple[Callable[..., Tensor], Callable[..., None]]:
    """``swiglu``, ``swiglu_out``."""

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
            launch(gate_up, y)
        return y

    def swiglu_out(gate_up: Tensor, y: Tensor) -> None:
        """Do what ``swiglu`` does, into ``y``, contiguous ``[T, I]``."""
        swiglu_schema.check(gate_up)
        shape = (gate_up.shape[0], gate_up.shape[1] // 2)
        check_output("y", y, shape=shape, symbols="[T, I]", dtype=gate_up.dtype, device=gate_up.device)

        if y.numel() > 0:
            launch(gate_up, y)

    return swiglu, swiglu_out
