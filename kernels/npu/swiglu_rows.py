"""Gate times its sigmoid times up, row by row, a stretch of channels at a time: a program many rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), float32; 0 where e^-x overflows."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def swiglu_kernel(gate_up_ptr, y_ptr, rows, stride, I, STEPS: tl.constexpr, STEP: tl.constexpr):
    for t in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(t, tl.int64)
        row = gate_up_ptr + at * stride
        for step in range(STEPS):
            i = step * STEP + tl.arange(0, STEP)
            inside = i < I
            gate = tl.load(row + i, mask=inside, other=0.0).to(tl.float32)
            up = tl.load(row + I + i, mask=inside, other=0.0).to(tl.float32)
            y = gate * sigmoid(gate) * up
            tl.store(y_ptr + at * I + i, y.to(y_ptr.dtype.element_ty), mask=inside)
