"""Kernels that a level must refuse, or flag: what each is wrong about stands in its name."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def doubled(x_ptr, y_ptr, rows, N: tl.constexpr):
    """Right for an N that fits the unified buffer."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    inside = at < rows
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * 2, mask=inside)


@triton.jit
def added(x_ptr, y_ptr, rows, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y_ptr + at, tl.load(x_ptr + at) + tl.load(x_ptr + at))


@triton.jit
def store_without_mask(x_ptr, y_ptr, rows, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < rows, other=0.0) * 2)


@triton.jit
def walked(x_ptr, y_ptr, rows, N: tl.constexpr):
    """Copies under way while others are computed take their buffers twice, where there is room."""
    for step in range(rows):
        at = step * N + tl.arange(0, N)
        tl.store(y_ptr + at, tl.load(x_ptr + at).to(tl.float32) * 2)
