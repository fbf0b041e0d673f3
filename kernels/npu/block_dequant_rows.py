"""Weights from e4m3 codes and the scales of their blocks, on a card without floats of 8 bits: from the bits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def decoded(code):
    """The number of an e4m3 code, float32: exponent and fraction under float32's bias; two codes are NaN."""
    code = code.to(tl.int32)
    magnitude = code & 0x7F
    # 2^120 moves the exponent from a bias of 7 to one of 127, and gives subnormal codes their value.
    value = (magnitude << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36
    value = tl.where(code < 0, -value, value)
    return tl.where(magnitude == 0x7F, float("nan"), value)


@triton.jit
def block_dequant_kernel(
    q_ptr, scale_ptr, w_ptr, tiles, N, H, expert_stride, row_stride, block_rows, block_columns, scale_rows,
    scale_columns, chunks, ROWS: tl.constexpr, PIECES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Tiles of rows of one block row, of all experts; a block's columns in pieces, so that a tile has one scale."""
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        block_row, chunk = tile // chunks, tile % chunks
        expert, in_expert = block_row // scale_rows, block_row % scale_rows
        in_block = chunk * ROWS + tl.arange(0, ROWS)[:, None]
        n = in_expert * block_rows + in_block
        rows = (in_block < block_rows) & (n < N)
        codes = q_ptr + tl.cast(expert, tl.int64) * expert_stride
        out = w_ptr + tl.cast(expert, tl.int64) * N * H
        for group in range(scale_columns):
            scale = tl.load(scale_ptr + block_row * scale_columns + group)
            for piece in range(PIECES):
                in_group = piece * STEP + tl.arange(0, STEP)[None, :]
                h = group * block_columns + in_group
                inside = rows & (in_group < block_columns) & (h < H)
                q = tl.load(codes + n * row_stride + h, mask=inside, other=0)
                tl.store(out + n * H + h, (decoded(q) * scale).to(w_ptr.dtype.element_ty), mask=inside)
