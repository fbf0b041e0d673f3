"""SwiGLU and quantisation of its result to int8 in one pass, on an NPU."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import swiglu_quant as launched
from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.swiglu_quant_rows import swiglu_quant_kernel

# Channels of a group, which is held whole in float32.
WIDEST = 4096

contract = {"reciprocal": "float32"}
# Experts of these cards multiply int8; their compiler has no type of 8 bits that floats.
refused = {"q": {"float8_e4m3fn": "cards A2 and A3 have no floats of 8 bits; quant='int8' is theirs"}}


def _launch(gate_up: Tensor, group: int, q: Tensor, scale: Tensor) -> None:
    schema.expect_range("group", group, 1, WIDEST, "a program holds a group in the unified buffer; MiniMax-M2 has 1536")
    rows, I = q.shape
    swiglu_quant_kernel[programs(rows, q)](
        gate_up, q, scale, rows, gate_up.stride(0), I, group, scale.shape[1], WIDTH=power_of_two(group)
    )


swiglu_quant, swiglu_quant_out = launched.functions(registered("swiglu_quant", _launch), codes=("int8",))
