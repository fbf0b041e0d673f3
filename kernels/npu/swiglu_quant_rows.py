"""Gate times its sigmoid times up, quantised to int8: a program many rows, a group of channels held whole."""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.npu.swiglu_rows import sigmoid


@triton.jit
def swiglu_quant_kernel(
    gate_up_ptr, q_ptr, scale_ptr, rows, stride, I, group, num_groups, WIDTH: tl.constexpr
):  # fmt: skip
    within = tl.arange(0, WIDTH)
    for t in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(t, tl.int64)
        row = gate_up_ptr + at * stride
        for g in range(num_groups):
            i = g * group + within
            inside = (within < group) & (i < I)
            gate = tl.load(row + i, mask=inside, other=0.0).to(tl.float32)
            up = tl.load(row + I + i, mask=inside, other=0.0).to(tl.float32)
            y = gate * sigmoid(gate) * up
            # A maximum of floats may pass NaN over; as integers, magnitudes have their order, and NaN is the largest.
            absmax = tl.max(y.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0).to(tl.float32, bitcast=True)
            scale = tl.where(absmax < 1e-10, 1e-10, absmax) / 127.0
            # 1.5 * 2^23: the spacing of float32 there is 1. No quotient comes nearer to 128 than to 127.
            nearest = (y * (1.0 / scale) + 12582912.0) - 12582912.0
            tl.store(q_ptr + at * I + i, nearest.to(tl.int8), mask=inside)
            tl.store(scale_ptr + at * num_groups + g, scale)
