"""Lays weights out in blocks of 64 output columns, the input dimension outermost, as column_block.h reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension, node_shares
from minimax_m2.kernels.cpu.huge_pages import empty_in_huge_pages

# Output columns a block holds; the width of a strip in column_block.h.
COLUMNS = 64


def blocks(weight: Tensor, order: Tensor) -> Tensor:
    """Turn rows ``order`` of ``[E, N, M]`` into blocks of 64 columns.

    returns  [E, len(order)/64, ceil(M/n), 64, n], n inputs of a column side by side as the dot product instruction
             wants them: 2 of bfloat16 and e4m3, 4 of int8; [E, len(order)/64, M, 64] for float32 and float16
    """
    # torch indexes and permutes few operations on float8: move bits, not numbers. Inputs side by side move as a word.
    order, beside = _laid_order(weight.dtype, order), _side_by_side(weight.dtype)
    num_experts, _, inputs = weight.shape
    words, word = -(-inputs // beside), _WORDS[weight.element_size() * beside]
    laid = empty_in_huge_pages((num_experts, len(order) // COLUMNS, words, COLUMNS), word)
    if node_shares.count() > 1:
        # The library of any op that reads such blocks can touch them.
        node_shares.touch_first(laid, extension.load("fp8_linear"))
    # One after the other: the chosen rows of all would take as much memory as the weights again.
    for target, rows in zip(laid, _bits(weight), strict=True):
        chosen = rows.index_select(0, order)
        whole = torch.nn.functional.pad(chosen, (0, -inputs % beside)) if inputs % beside else chosen
        target.copy_(whole.view(word).view(len(target), COLUMNS, words).transpose(1, 2))
    return laid.view(weight.dtype).view(*laid.shape, *([beside] if beside > 1 else []))


def rows_of(laid: Tensor, order: Tensor, *, inputs: int) -> Tensor:
    """Turn what ``blocks`` laid out back into ``[E, N, M]`` of ``inputs`` M: the same bits."""
    raw = _bits(laid)
    columns = raw.movedim(3, 2).flatten(3)[..., :inputs].flatten(1, 2)
    rows = columns.new_empty(len(columns), int(order.max()) + 1, inputs)
    # Rows that fill the last block are copies of the last one.
    rows[:, _laid_order(laid.dtype, order)] = columns
    return rows.view(laid.dtype)


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def _bits(x: Tensor) -> Tensor:
    return x.view(_WORDS[x.element_size()])


def _side_by_side(dtype: torch.dtype) -> int:
    """Inputs of a column that one product takes."""
    return {torch.float32: 1, torch.float16: 1, torch.int8: 4}.get(dtype, 2)


def _laid_order(dtype: torch.dtype, order: Tensor) -> Tensor:
    if dtype != torch.float8_e4m3fn:
        return order
    # Of each 32 columns four of the first half, then four of the second: so widening crosses no 128-bit lane.
    return order.view(-1, 2, 4, 4).transpose(1, 2).flatten()


def scale_blocks(scale: Tensor, row: Tensor) -> Tensor:
    """Give each block its columns' scales: ``[E, blocks, groups, 64]``, or 2 where all of a half share one.

    row  [len(order)] the row of ``scale`` of every column

    A scale a column is 3 % of the bytes that a token streams through blocks of 128 x 128.
    """
    halves = row.view(-1, COLUMNS // 2)
    if (halves == halves[:, :1]).all():
        row = halves[:, 0]
    each = scale[:, row]
    per_block = 2 * len(row) // len(halves)
    return each.view(len(each), -1, per_block, each.shape[-1]).permute(0, 1, 3, 2).contiguous()


def channel_scales(scale: Tensor, order: Tensor) -> Tensor:
    """Give each column of a block its scale: ``[E, N, 1]`` to ``[E, blocks, 1, 64]``."""
    return scale[:, order].view(len(scale), -1, 1, COLUMNS)


def starts(laid: Tensor) -> Tensor:
    """Where sums begin whose activations are held 128 too large, by column of int8: int32 ``[E, blocks, 64]``."""
    return laid.sum((2, 4), dtype=torch.int32) * -128


def scale_of(laid: Tensor, row: Tensor) -> Tensor:
    """Turn what ``scale_blocks`` laid out back into ``[E, rows of blocks, groups]``."""
    # A scale for each half of a block is that of all its columns.
    each = laid.repeat_interleave(COLUMNS // laid.shape[3], 3).movedim(3, 2).flatten(1, 2)
    scale = each.new_empty(len(each), int(row.max()) + 1, each.shape[-1])
    scale[:, row] = each
    return scale


def every_row(count: int) -> Tensor:
    """Order of ``count`` rows, the last repeated to fill a block."""
    return torch.arange(-(-count // COLUMNS) * COLUMNS).clamp(max=count - 1)
