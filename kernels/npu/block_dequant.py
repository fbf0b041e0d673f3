"""Weights from quantised weights and the scales of their blocks, on an NPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.npu.block_dequant_rows import block_dequant_kernel
from minimax_m2.kernels.npu.launch import power_of_two, programs, registered
from minimax_m2.kernels.schema import block_dequant as block_dequant_schema
from minimax_m2.kernels.schema.rms_norm import check_output

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


_call = registered("block_dequant", _launch)


def block_dequant(q: Tensor, scale: Tensor, *, block: tuple[int, int] = (128, 128), dtype: torch.dtype) -> Tensor:
    """Multiply each block by its scale: ``w[i, j] = q[i, j] * scale[i // rows, j // columns]``.

    q        [N, H] or [E, N, H] e4m3, strides of rows and experts free
    scale    [..., ceil(N/rows), ceil(H/columns)] float32
    returns  shape of q, ``dtype`` float32, bfloat16 or float16, contiguous

    The product is float32 and rounds once more to ``dtype``.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    block_dequant_schema.check(q, scale, block=block, dtype=dtype)

    w = torch.empty(q.shape, dtype=dtype, device=q.device)

    if w.numel() > 0:
        _call(q, scale, block[0], block[1], w)
    return w


def block_dequant_out(
    q: Tensor, scale: Tensor, w: Tensor, *, block: tuple[int, int] = (128, 128), dtype: torch.dtype
) -> None:
    """Do what ``block_dequant`` does, into ``w``, contiguous, of ``dtype``."""
    block_dequant_schema.check(q, scale, block=block, dtype=dtype)
    check_output("w", w, shape=tuple(q.shape), symbols="[..., N, H]", dtype=dtype, device=q.device)

    if w.numel() > 0:
        _call(q, scale, block[0], block[1], w)
