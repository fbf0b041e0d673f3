"""SwiGLU, the gated activation of every expert, on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.exponential import sigmoid
from minimax_m2.kernels.gpu.launch import capability, chained, on_device_of, registered, take_turn
from minimax_m2.kernels.launched import swiglu as launched

BLOCK = 1024


@triton.jit
def gated(gate, up):
    """gate * sigmoid(gate) * up, float32; 0 where gate is so low that its sigmoid is 0."""
    return gate * sigmoid(gate) * up


@triton.jit
def swiglu_kernel(gate_up_ptr, y_ptr, stride, I, BLOCK: tl.constexpr, EARLY: tl.constexpr, FOLLOWED: tl.constexpr):
    take_turn(EARLY, FOLLOWED)
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < I
    row = gate_up_ptr + t * stride
    gate = tl.load(row + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + I + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + t * I + i, gated(gate, up).to(y_ptr.dtype.element_ty), mask=inside)


def _launch(gate_up: Tensor, y: Tensor) -> None:
    num_tokens, I = y.shape
    programs = triton.cdiv(I, BLOCK)
    with on_device_of(gate_up):
        swiglu_kernel[(num_tokens, programs)](
            gate_up, y, gate_up.stride(0), I, BLOCK=BLOCK, num_warps=4,
            **chained(capability(gate_up), num_tokens * programs * 4),
        )  # fmt: skip


swiglu, swiglu_out = launched.functions(registered("swiglu", _launch))
