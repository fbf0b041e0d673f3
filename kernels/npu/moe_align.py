"""Sort (token, choice) slots by expert on an NPU: three launches, no atomics, one order."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.launched import moe_align as launched
from minimax_m2.kernels.npu.launch import programs, registered
from minimax_m2.kernels.npu.moe_align_slots import count_slots_kernel, place_experts_kernel, place_slots_kernel

# Sides of the square in which slots meet experts, and slots that are padded at once.
SLOTS, EXPERTS, FILL = 64, 64, 2048
# float32 has every count up to here.
MOST_SLOTS = 2**24


def _launch(
    ids: Tensor, num_experts: int, block: int, expert_map: Tensor | None, sorted_slots: Tensor, block_experts: Tensor,
    num_padded: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    slots, blocks = ids.numel(), block_experts.numel()
    slot_tiles, expert_tiles, block_tiles = -(-slots // SLOTS), -(-num_experts // EXPERTS), -(-blocks // SLOTS)
    schema.expect_range("T*K", slots + block, 1, MOST_SLOTS, "its counts are float32 in between: split the batch")
    schema.expect_range("counts", slot_tiles * num_experts, 1, 2**31 - 1, "they are int32 places: split the batch")
    tile_counts, starts = (
        torch.empty((slot_tiles, num_experts), dtype=torch.int32, device=ids.device) for _ in range(2)
    )
    ends = torch.empty(num_experts, dtype=torch.int32, device=ids.device)
    mapped = 0 if expert_map is None else expert_map.numel()
    map_tiles, fills = -(-mapped // EXPERTS), -(-sorted_slots.numel() // FILL)
    # Vector cores have no arithmetic of 64 bits: an id goes in as its words.
    words = ids.view(torch.int32)
    tile = {"WORDS": words.numel() // slots, "SLOTS": SLOTS, "EXPERTS": EXPERTS}
    count_slots_kernel[programs(max(slot_tiles, fills), ids)](
        words, expert_map, tile_counts, sorted_slots, slots, num_experts, mapped, map_tiles, slot_tiles, expert_tiles,
        sorted_slots.numel(), fills, **tile, FILL=FILL,
    )  # fmt: skip
    place_experts_kernel[programs(expert_tiles, ids)](
        tile_counts, starts, ends, counts, num_experts, slot_tiles, expert_tiles, block, EXPERTS=EXPERTS
    )
    place_slots_kernel[programs(max(slot_tiles, block_tiles), ids)](
        words, expert_map, starts, ends, sorted_slots, block_experts, num_padded, slots, num_experts, mapped, map_tiles,
        slot_tiles, expert_tiles, blocks, block_tiles, block, **tile,
    )  # fmt: skip


moe_align, moe_align_out = launched.functions(registered("moe_align", _launch))
