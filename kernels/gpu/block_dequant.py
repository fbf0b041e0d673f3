"""Weights from quantised weights and the scales of their blocks, on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import capability, converts_e4m3, on_device_of, registered
from minimax_m2.kernels.gpu.scaled_tile import factor
from minimax_m2.kernels.launched import block_dequant as launched

ROWS, COLUMNS = 8, 512


@triton.jit
def block_dequant_kernel(
    q_ptr, scale_ptr, w_ptr, expert_stride, row_stride, N, H, block_rows, block_columns, scale_rows, scale_columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(2).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    h = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (n < N)[:, None] & (h < H)[None, :]
    q = tl.load(q_ptr + expert * expert_stride + n[:, None] * row_stride + h[None, :], mask=inside, other=0)
    block = (expert * scale_rows + n[:, None] // block_rows) * scale_columns + h[None, :] // block_columns
    w = factor(q, HARDWARE).to(tl.float32) * tl.load(scale_ptr + block, mask=inside, other=0.0)
    tl.store(w_ptr + (expert * N + n[:, None]) * H + h[None, :], w.to(w_ptr.dtype.element_ty), mask=inside)


def _launch(q: Tensor, scale: Tensor, block_rows: int, block_columns: int, w: Tensor) -> None:
    N, H = q.shape[-2:]
    experts, expert_stride = (q.shape[0], q.stride(0)) if q.dim() == 3 else (1, 0)
    with on_device_of(q):
        block_dequant_kernel[(triton.cdiv(H, COLUMNS), triton.cdiv(N, ROWS), experts)](
            q.view(torch.uint8), scale, w, expert_stride, q.stride(-2), N, H, block_rows, block_columns,
            *scale.shape[-2:], ROWS=ROWS, COLUMNS=COLUMNS, HARDWARE=converts_e4m3(capability(q)), num_warps=4,
        )  # fmt: skip


block_dequant, block_dequant_out = launched.functions(registered("block_dequant", _launch))
