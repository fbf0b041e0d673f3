"""Weights from quantised weights and the scales of their blocks, on an NPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.launched import block_dequant as launched
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.npu.block_dequant_rows import block_dequant_kernel
from minimax_m2.kernels.npu.launch import programs, registered

# Codes of a tile, and columns of a piece of a block: int32 and float32 tiles of both fit the unified buffer.
MOST_CODES, WIDEST = 4096, 2048


def _launch(q: Tensor, scale: Tensor, block_rows: int, block_columns: int, w: Tensor) -> None:
    N, H = q.shape[-2:]
    experts, expert_stride = (q.shape[0], q.stride(0)) if q.dim() == 3 else (1, 0)
    step = min(WIDEST, power_of_two(min(block_columns, H)))
    rows = min(MOST_CODES // step, power_of_two(min(block_rows, N)))
    chunks = -(-min(block_rows, N) // rows)
    tiles = experts * scale.shape[-2] * chunks
    # Cards of this generation have no e4m3: the codes go in as bytes.
    block_dequant_kernel[programs(tiles, q)](
        q.view(torch.int8), scale, w, tiles, N, H, expert_stride, q.stride(-2), block_rows, block_columns,
        *scale.shape[-2:], chunks, ROWS=rows, PIECES=-(-min(block_columns, H) // step), STEP=step,
    )  # fmt: skip


block_dequant, block_dequant_out = launched.functions(registered("block_dequant", _launch))
