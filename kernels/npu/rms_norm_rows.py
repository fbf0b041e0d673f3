"""Rows normalised by their root mean square, alone or after a residual is added: a program many rows, each held whole.

As in every file of Triton functions here, nothing but Triton is imported.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_of(z, width, eps, LANES: tl.constexpr, BLOCK: tl.constexpr):
    """1 / rms of a row: summed in two directions, as no order of one long sum is promised."""
    squares = tl.reshape(z * z, (LANES, BLOCK // LANES))
    return 1.0 / tl.sqrt(tl.sum(tl.sum(squares, 1), 0) / width + eps)


@triton.jit
def rms_norm_kernel(
    x_ptr, weight_ptr, y_ptr, rows, x_stride, H, width, eps, LANES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    h = tl.arange(0, BLOCK)
    inside = h < H
    weight = tl.load(weight_ptr + h, mask=inside, other=0.0).to(tl.float32)
    for t in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(t, tl.int64)
        x = tl.load(x_ptr + at * x_stride + h, mask=inside, other=0.0).to(tl.float32)
        y = x * scale_of(x, width, eps, LANES, BLOCK) * weight
        tl.store(y_ptr + at * H + h, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, residual_out_ptr, rows, x_stride, residual_stride, H, width, eps,
    LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    h = tl.arange(0, BLOCK)
    inside = h < H
    weight = tl.load(weight_ptr + h, mask=inside, other=0.0).to(tl.float32)
    for t in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(t, tl.int64)
        x = tl.load(x_ptr + at * x_stride + h, mask=inside, other=0.0).to(tl.float32)
        z = x + tl.load(residual_ptr + at * residual_stride + h, mask=inside, other=0.0).to(tl.float32)
        tl.store(residual_out_ptr + at * H + h, z.to(residual_out_ptr.dtype.element_ty), mask=inside)
        y = z * scale_of(z, width, eps, LANES, BLOCK) * weight
        tl.store(y_ptr + at * H + h, y.to(y_ptr.dtype.element_ty), mask=inside)
