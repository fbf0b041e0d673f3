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

    returns  [E, len(order)/64, ceil(M/2), 64, 2] for bfloat16 and e4m3, two inputs of a column side by side as the dot
             product instruction wants them; [E, len(order)/64, M, 64] for float32 and float16
    """
    # torch indexes and permutes few operations on float8: move bits, not numbers. Two inputs are moved as one word.
    order, pairs = _laid_order(weight.dtype, order), _pairs(weight.dtype)
    num_experts, _, inputs = weight.shape
    words = -(-inputs // 2) if pairs else inputs
    word = _WORDS[weight.element_size() * (2 if pairs else 1)]
    laid = empty_in_huge_pages((num_experts, len(order) // COLUMNS, words, COLUMNS), word)
    if node_shares.count() > 1:
        # The library of any op that reads such blocks can touch them.
        node_shares.touch_first(laid, extension.load("fp8_linear"))
    # One after the other: the chosen rows of all would take as much memory as the weights again.
    for target, rows in zip(laid, _bits(weight), strict=True):
        chosen = rows.index_select(0, order)
        even = torch.nn.functional.pad(chosen, (0, 1)) if pairs and inputs % 2 else chosen
        target.copy_(even.view(word).view(len(target), COLUMNS, words).transpose(1, 2))
    return laid.view(weight.dtype).view(*laid.shape, *([2] if pairs else []))


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


def _pairs(dtype: torch.dtype) -> bool:
    """Whether two inputs of a column stand side by side."""
    return dtype not in (torch.float32, torch.float16)


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
