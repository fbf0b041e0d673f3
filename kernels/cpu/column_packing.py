"""Lays weights out in blocks of 64 output columns, the input dimension outermost, as column_block.h reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu.huge_pages import in_huge_pages

# Output columns a block holds; the width of a strip in column_block.h.
COLUMNS = 64


def blocks(weight: Tensor, order: Tensor) -> Tensor:
    """Turn rows ``order`` of ``[E, N, M]`` into blocks of 64 columns.

    returns  [E, len(order)/64, ceil(M/2), 64, 2] for bfloat16 and e4m3, two inputs of a column side by side as the dot
             product instruction wants them; [E, len(order)/64, M, 64] for float32 and float16
    """
    if weight.dtype == torch.float8_e4m3fn:
        # Of each 32 columns four of the first half, then four of the second: so widening crosses no 128-bit lane.
        order = order.view(-1, 2, 4, 4).transpose(1, 2).flatten()
    # torch indexes and permutes few operations on float8: move bits, not numbers.
    raw = weight.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[weight.element_size()])[:, order]
    num_experts, columns, inputs = raw.shape
    if weight.dtype in (torch.float32, torch.float16):
        laid = raw.view(num_experts, columns // COLUMNS, COLUMNS, inputs).permute(0, 1, 3, 2)
    else:
        even = torch.nn.functional.pad(raw, (0, inputs % 2))
        laid = even.view(num_experts, columns // COLUMNS, COLUMNS, -1, 2).permute(0, 1, 3, 2, 4)
    return in_huge_pages(laid).view(weight.dtype)


def scale_blocks(scale: Tensor, row: Tensor) -> Tensor:
    """Repeat a block's scale for each of its columns: ``[E, blocks, groups, 64]``."""
    each = scale[:, row]
    return each.view(len(each), -1, COLUMNS, each.shape[-1]).permute(0, 1, 3, 2).contiguous()


def every_row(count: int) -> Tensor:
    """Order of ``count`` rows, the last repeated to fill a block."""
    return torch.arange(-(-count // COLUMNS) * COLUMNS).clamp(max=count - 1)
