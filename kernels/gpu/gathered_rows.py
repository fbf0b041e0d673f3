"""Rows of x in the order of sorted slots: what lets a copy engine fetch an expert's tokens as one tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import capability, converts_e4m3, let_next_start, starts_early, wait_for_predecessor
from minimax_m2.kernels.gpu.scaled_tile import channels, quantised_rows
from minimax_m2.kernels.schema.block_quant import allocated

# Rows and groups of a program. Padding ends a block, so a program whose first row is padding has nothing to do.
ROWS, GROUPS = 16, 8
# Columns of a program that copies rows as they are.
COLUMNS = 512


@triton.jit
def gathered_rows_kernel(
    x_ptr, x_scale_ptr, sorted_ptr, q_ptr, scale_ptr, x_stride, num_slots, top_k, H, num_groups, width,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, CODED: tl.constexpr, HARDWARE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """``q[i], scale[i] = codes of x[sorted[i] // top_k]`` for groups of ``width`` channels, which fill H exactly."""
    wait_for_predecessor(EARLY)
    let_next_start(EARLY)
    first = tl.program_id(0).to(tl.int64) * ROWS
    if tl.load(sorted_ptr + first) >= num_slots:
        return
    place = first + tl.arange(0, ROWS)
    slot = tl.load(sorted_ptr + place)
    ok = slot < num_slots
    token = (slot // top_k).to(tl.int64)
    within = tl.arange(0, WIDTH)
    for count in tl.static_range(GROUPS):
        group = tl.program_id(1) * GROUPS + count
        row_ok = ok & (group < num_groups)
        if CODED:
            q = channels(x_ptr, token, row_ok, x_stride, group * width, width, H, WIDTH, True)
            scale = tl.load(x_scale_ptr + token * num_groups + group, mask=row_ok, other=0.0)
        else:
            q, scale = quantised_rows(x_ptr, token, row_ok, x_stride, group * width, width, H, WIDTH, True, HARDWARE)
        tl.store(q_ptr + place[:, None] * H + (group * width + within)[None, :], q, mask=row_ok[:, None])
        tl.store(scale_ptr + place * num_groups + group, scale, mask=row_ok)


def gathered_rows(x: Tensor, x_scale: Tensor | None, sorted_slots: Tensor, num_slots: int, top_k: int, width: int) -> (
    tuple[Tensor, Tensor]
):  # fmt: skip
    """Codes ``[len(sorted_slots), H]`` and scales of the tokens of sorted slots; rows of padding stay unwritten."""
    hidden = x.shape[1]
    q, scale = allocated(len(sorted_slots), hidden, group=width, dtype=torch.float8_e4m3fn, device=x.device)
    coded = x_scale is not None
    grid = (triton.cdiv(len(sorted_slots), ROWS), triton.cdiv(hidden // width, GROUPS))
    arch = capability(x)
    gathered_rows_kernel[grid](
        x.view(torch.uint8) if coded else x, x_scale, sorted_slots, q.view(torch.uint8), scale, x.stride(0), num_slots,
        top_k, hidden, hidden // width, width, ROWS=ROWS, GROUPS=GROUPS, WIDTH=width, CODED=coded,
        HARDWARE=converts_e4m3(arch), **starts_early(arch), num_warps=4,
    )  # fmt: skip
    return q, scale


@triton.jit
def gathered_tokens_kernel(
    x_ptr, sorted_ptr, rows_ptr, x_stride, num_slots, top_k, H, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """``rows[i] = x[sorted[i] // top_k]``; rows of padding stay unwritten."""
    wait_for_predecessor(EARLY)
    let_next_start(EARLY)
    first = tl.program_id(0).to(tl.int64) * ROWS
    if tl.load(sorted_ptr + first) >= num_slots:
        return
    place = first + tl.arange(0, ROWS)
    slot = tl.load(sorted_ptr + place)
    token = (slot // top_k).to(tl.int64)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (slot < num_slots)[:, None] & (n < H)[None, :]
    row = tl.load(x_ptr + token[:, None] * x_stride + n[None, :], mask=inside)
    tl.store(rows_ptr + place[:, None] * H + n[None, :], row, mask=inside)


def gathered_tokens(x: Tensor, sorted_slots: Tensor, num_slots: int, top_k: int) -> Tensor:
    """Tokens ``[len(sorted_slots), H]`` of sorted slots as they are; rows of padding stay unwritten."""
    hidden = x.shape[1]
    rows = torch.empty((len(sorted_slots), hidden), dtype=x.dtype, device=x.device)
    gathered_tokens_kernel[(triton.cdiv(len(sorted_slots), ROWS), triton.cdiv(hidden, COLUMNS))](
        x, sorted_slots, rows, x.stride(0), num_slots, top_k, hidden, ROWS=ROWS, COLUMNS=COLUMNS,
        **starts_early(capability(x)), num_warps=4,
    )  # fmt: skip
    return rows
