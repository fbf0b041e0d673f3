"""A product of two dense factors on tensor cores, in tiles, its sum cut into parts where tiles are few.

Shared by ``linear`` and ``lm_head``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import capability, let_next_start, on_device_of, overlaps, wait_for_predecessor
from minimax_m2.kernels.gpu.parts import PROGRAMS, add_parts, part_sums, parts_of
from minimax_m2.kernels.gpu.row_products import fits, row_products

# Column tiles that share rows of x in the cache before the next rows come.
GROUP = 8
# Architectures whose programs may share 163 KB; programs of a large GPU, each alone on its multiprocessor.
ROOMY, ALONE = (80, 90, 100), 132


def by_library(num_tokens: int, dtype: torch.dtype) -> bool:
    """Whether cuBLAS is faster: measured 1.2 to 1.8 times from 64 tokens of 16 bits on. float32 could meet TF32."""
    return num_tokens > 32 and dtype != torch.float32


class Tiling(NamedTuple):
    """Rows of x, columns and channels of a program, its warps and the loads in flight."""

    tokens: int
    columns: int
    channels: int
    warps: int
    stages: int


def tiling(num_tokens: int, num_columns: int, dtype: torch.dtype, capability: int) -> Tiling:
    """Narrow tiles where the weight's bytes set the time, wide ones where products do; float32 has no tensor core.

    Of few rows the narrowest where they are as many as the programs that keep a GPU busy: no sum is cut into parts.
    Where tiles are fewer a program is alone on its multiprocessor, and has more loads under way.
    """
    if dtype == torch.float32:
        return Tiling(16 if num_tokens <= 16 else 64, 64, 32, 4, 3)
    if num_tokens <= 32:
        tokens = 16 if num_tokens <= 16 else 32
        if PROGRAMS <= triton.cdiv(num_columns, 32) < 2 * PROGRAMS:
            return Tiling(tokens, 32, 256 if num_tokens <= 16 else 128, 2, 4)
        alone = num_columns < 32 * PROGRAMS and capability in ROOMY
        return Tiling(tokens, 64, 128, 4, 6 if alone else 4)
    if num_tokens <= 64:
        return Tiling(64, 64, 128, 4, 4)
    return Tiling(64, 128, 64, 4, 4) if num_tokens <= 256 else Tiling(128, 256, 64, 8, 3)


def parts_of_tiles(cut: Tiling, num_tokens: int, num_columns: int, hidden: int) -> int:
    """Parts of a product's sum: of tiles with many loads under way a multiprocessor holds one."""
    tiles = triton.cdiv(num_columns, cut.columns) * triton.cdiv(num_tokens, cut.tokens)
    return parts_of(tiles, triton.cdiv(hidden, cut.channels), ALONE if cut.stages == 6 else PROGRAMS)


@triton.jit
def dense_tile_kernel(
    x_ptr, rows_ptr, weight_ptr, out_ptr, x_stride, weight_stride, T, N, H, x_rows, length,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr, GROUP: tl.constexpr,
    HAS_ROWS: tl.constexpr, EVEN: tl.constexpr, EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    """One part of the sum for a tile, the weight as the left factor: its rows fill a tensor core, few tokens do not."""
    column_tiles, token_tiles = tl.cdiv(N, COLUMNS), tl.cdiv(T, TOKENS)
    group = tl.program_id(0) // (GROUP * token_tiles)
    first = group * GROUP
    high = tl.minimum(column_tiles - first, GROUP)
    within = tl.program_id(0) % (GROUP * token_tiles)
    n = (first + within % high) * COLUMNS + tl.arange(0, COLUMNS)
    t = (within // high) * TOKENS + tl.arange(0, TOKENS)
    part = tl.program_id(1)
    wait_for_predecessor(EARLY)
    let_next_start(EARLY and FOLLOWED)
    row = t.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows_ptr + t, mask=t < T, other=-1).to(tl.int64)
    row_ok = (t < T) & (row >= 0) & (row < x_rows)
    lane = tl.arange(0, CHANNELS)
    weight_place = weight_ptr + n.to(tl.int64)[:, None] * weight_stride + (part * length + lane)[None, :]
    x_place = x_ptr + row[None, :] * x_stride + (part * length + lane)[:, None]
    total = tl.zeros((COLUMNS, TOKENS), tl.float32)
    for step in tl.range(STEPS):
        at = step * CHANNELS
        if EVEN:
            w = tl.load(weight_place + at, mask=(n < N)[:, None], other=0.0)
            x = tl.load(x_place + at, mask=row_ok[None, :], other=0.0)
        else:
            inside = (at + lane < length) & (part * length + at + lane < H)
            w = tl.load(weight_place + at, mask=(n < N)[:, None] & inside[None, :], other=0.0)
            x = tl.load(x_place + at, mask=row_ok[None, :] & inside[:, None], other=0.0)
        total = tl.dot(w, x, total, input_precision="ieee")
    # A row of x that does not exist: nothing here may wait for the host.
    total = tl.where(row_ok[None, :], total, float("nan"))
    place = (part.to(tl.int64) * T + t[None, :]) * N + n[:, None]
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=(t < T)[None, :] & (n < N)[:, None])


def dense_product(x: Tensor, weight: Tensor, rows: Tensor | None, out: Tensor) -> None:
    """Write ``x[rows] @ weight[:N]^T`` to ``out [T, N]``; a row outside x gives NaN."""
    (num_tokens, num_columns), hidden = out.shape, x.shape[1]
    arch = capability(x)
    with on_device_of(x):
        if fits(num_tokens, hidden, x.dtype):
            row_products(x, weight, out, capability=arch, rows=rows)
            return
        if by_library(num_tokens, x.dtype) and rows is None and x.is_cuda:
            torch.mm(x, weight[:num_columns].mT, **({"out_dtype": out.dtype} if out.dtype != x.dtype else {}), out=out)
            return
        cut = tiling(num_tokens, num_columns, x.dtype, arch)
        tiles = triton.cdiv(num_columns, cut.columns) * triton.cdiv(num_tokens, cut.tokens)
        parts = parts_of_tiles(cut, num_tokens, num_columns, hidden)
        steps = triton.cdiv(triton.cdiv(hidden, cut.channels), parts)
        sums, overlap = part_sums(parts, out), overlaps(arch)
        dense_tile_kernel[(tiles, parts)](
            x, rows, weight, sums, x.stride(0), weight.stride(0), num_tokens, num_columns, hidden, x.shape[0],
            steps * cut.channels, TOKENS=cut.tokens, COLUMNS=cut.columns, CHANNELS=cut.channels, STEPS=steps,
            GROUP=GROUP, HAS_ROWS=rows is not None, EVEN=hidden % (steps * cut.channels) == 0, EARLY=overlap,
            FOLLOWED=parts > 1, num_warps=cut.warps, num_stages=cut.stages, launch_pdl=overlap,
        )  # fmt: skip
        if parts > 1:
            add_parts(sums, None, out, arch)
