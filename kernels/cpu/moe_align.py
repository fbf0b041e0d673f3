"""Sort slots by expert on the CPU, each expert's run padded to whole blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import moe_align as moe_align_schema

extension.load("moe_align")


def moe_align(
    ids: Tensor, *, num_experts: int, block: int, expert_map: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay slots ``t * K + k`` out so that every block of ``block`` entries belongs to one expert.

    ids         [T, K] int32 or int64; -1, and ids that expert_map sends to -1, take no slot
    expert_map  [experts of all ranks] int32 or None: translates ids first
    returns     int32 sorted_slots [L*block] (T*K where padded), block_experts [L] (-1 from the last used block on),
                num_padded [1], counts [num_experts]; L = min(T*K, (T*K + num_experts*(block - 1)) // block)

    Raises ValueError or TypeError for shapes, dtypes and sizes outside the above, and ValueError for an id outside
    -1..num_experts-1, before or after expert_map.
    """
    moe_align_schema.check(ids, num_experts=num_experts, block=block, expert_map=expert_map)

    shapes = moe_align_schema.shapes(ids, num_experts=num_experts, block=block)
    # Without slots nothing is launched, and zero is right for every output.
    sorted_slots, block_experts, num_padded, counts = (torch.zeros(s, dtype=torch.int32) for s in shapes.values())

    if ids.numel() > 0:
        torch.ops.minimax_m2.moe_align(
            ids, num_experts, block, expert_map, sorted_slots, block_experts, num_padded, counts
        )
    return sorted_slots, block_experts, num_padded, counts


def moe_align_out(
    ids: Tensor,
    sorted_slots: Tensor,
    block_experts: Tensor,
    num_padded: Tensor,
    counts: Tensor,
    *,
    num_experts: int,
    block: int,
    expert_map: Tensor | None = None,
) -> None:
    """Do what ``moe_align`` does, into four contiguous int32 tensors of its shapes."""
    moe_align_schema.check(ids, num_experts=num_experts, block=block, expert_map=expert_map)
    shapes = moe_align_schema.shapes(ids, num_experts=num_experts, block=block)
    outputs = (sorted_slots, block_experts, num_padded, counts)
    for (name, shape), out in zip(shapes.items(), outputs, strict=True):
        moe_align_schema.check_output(name, out, shape=shape, device=ids.device)

    if ids.numel() > 0:
        torch.ops.minimax_m2.moe_align(ids, num_experts, block, expert_map, *outputs)
    else:
        num_padded.zero_()
        counts.zero_()
