"""Sort (token, choice) slots by expert, on a device to which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.launched import Launch
from minimax_m2.kernels.schema import moe_align as moe_align_schema

MOST_EXPERTS = 16384


def functions(launch: Launch) -> tuple[Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]], Callable[..., None]]:
    """``moe_align``, ``moe_align_out``."""

    def moe_align(
        ids: Tensor, *, num_experts: int, block: int, expert_map: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Lay slots ``t * K + k`` out so that every block of ``block`` entries belongs to one expert.

        ids         [T, K] int32 or int64; -1, and ids that expert_map sends to -1, take no slot
        expert_map  [experts of all ranks] int32 or None: translates ids first
        returns     int32 sorted_slots [L*block] (T*K where padded), block_experts [L] (-1 from the last used block
                    on), num_padded [1], counts [num_experts]; L = min(T*K, (T*K + num_experts*(block - 1)) // block)

        An id outside -1..num_experts-1 takes no slot: nothing here may wait for the host.

        Raises ValueError or TypeError for shapes, dtypes and sizes outside the above, and for over 16384 experts.
        """
        _check(ids, num_experts=num_experts, block=block, expert_map=expert_map)

        shapes = moe_align_schema.shapes(ids, num_experts=num_experts, block=block)
        # Without slots nothing is launched, and zero is right for every output.
        made = torch.empty if ids.numel() > 0 else torch.zeros
        sorted_slots, block_experts, num_padded, counts = (
            made(s, dtype=torch.int32, device=ids.device) for s in shapes.values()
        )

        if ids.numel() > 0:
            launch(ids, num_experts, block, expert_map, sorted_slots, block_experts, num_padded, counts)
        return sorted_slots, block_experts, num_padded, counts

    def moe_align_out(
        ids: Tensor, sorted_slots: Tensor, block_experts: Tensor, num_padded: Tensor, counts: Tensor, *,
        num_experts: int, block: int, expert_map: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Do what ``moe_align`` does, into four contiguous int32 tensors of its shapes."""
        _check(ids, num_experts=num_experts, block=block, expert_map=expert_map)
        shapes = moe_align_schema.shapes(ids, num_experts=num_experts, block=block)
        outputs = (sorted_slots, block_experts, num_padded, counts)
        for (name, shape), out in zip(shapes.items(), outputs, strict=True):
            moe_align_schema.check_output(name, out, shape=shape, device=ids.device)

        if ids.numel() > 0:
            launch(ids, num_experts, block, expert_map, sorted_slots, block_experts, num_padded, counts)
        else:
            num_padded.zero_()
            counts.zero_()

    return moe_align, moe_align_out


def _check(ids: Tensor, *, num_experts: int, block: int, expert_map: Tensor | None) -> None:
    moe_align_schema.check(ids, num_experts=num_experts, block=block, expert_map=expert_map)
    schema.expect_range("num_experts", num_experts, 1, MOST_EXPERTS, "a program holds the counts of all experts")
