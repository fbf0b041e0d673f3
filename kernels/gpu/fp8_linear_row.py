"""The product of ``fp8_linear`` for a single token: float32 multiply-adds instead of a tensor core of empty rows."""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.gpu.launch import wait_for_predecessor
from minimax_m2.kernels.gpu.scaled_rows import code_tiles, group_sums, quantised_groups, scale_tiles


@triton.jit
def fp8_linear_row_kernel(
    x_ptr, x_scale_ptr, weight_ptr, scale_ptr, out_ptr, weight_stride, scale_stride,
    N, H, rows, columns, num_groups, COLUMNS: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr, CODED: tl.constexpr, HARDWARE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Multiply x by some rows of the weight, which are on their way before x is waited for."""
    first = tl.program_id(0) * COLUMNS
    n = first + tl.arange(0, COLUMNS)
    n_ok = n < N
    base = weight_ptr + tl.cast(first, tl.int64) * weight_stride
    codes = code_tiles(base, weight_stride, COLUMNS, n_ok, columns, H, GROUPS, BLOCK, STEPS, EVEN)
    scales = scale_tiles(scale_ptr, n // rows, n_ok, scale_stride, num_groups, GROUPS, STEPS)
    wait_for_predecessor(EARLY)
    y = tl.zeros((COLUMNS, GROUPS), tl.float32)
    for step in tl.static_range(STEPS):
        q, q_scale = quantised_groups(
            x_ptr, x_scale_ptr, True, step, columns, H, num_groups, GROUPS, BLOCK, CODED, HARDWARE
        )
        y += group_sums(codes[step], q, q_scale, scales[step], HARDWARE)
    tl.store(out_ptr + n, tl.sum(y, 1).to(out_ptr.dtype.element_ty), mask=n_ok)
