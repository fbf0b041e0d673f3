"""Sort (token, choice) slots by expert on a GPU: a program an expert, no atomics, one order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import capability, chained, on_device_of, registered, take_turn
from minimax_m2.kernels.launched import moe_align as launched
from minimax_m2.kernels.launched import power_of_two

# Slots that a program reads at once, of few and of many.
STEP, WIDE_STEP, MANY_SLOTS = 1024, 4096, 4096


@triton.jit
def local_experts(ids_ptr, map_ptr, slot, num_slots, num_experts, num_mapped, HAS_MAP: tl.constexpr):
    """The expert of each slot after translation; -1 for none, and for an id that no table has."""
    expert = tl.load(ids_ptr + slot, mask=slot < num_slots, other=-1).to(tl.int64)
    if HAS_MAP:
        known = (expert >= 0) & (expert < num_mapped)
        expert = tl.load(map_ptr + expert, mask=known, other=-1).to(tl.int64)
    return tl.where((expert >= 0) & (expert < num_experts), expert, -1).to(tl.int32)


@triton.jit
def count_slots_kernel(ids_ptr, map_ptr, counts_ptr, num_slots, num_experts, num_mapped, HAS_MAP: tl.constexpr,
                       STEPS: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
                       FOLLOWED: tl.constexpr):  # fmt: skip
    take_turn(EARLY, FOLLOWED)
    expert = tl.program_id(0)
    count = tl.zeros((STEP,), tl.int32)
    for step in range(STEPS):
        slot = step * STEP + tl.arange(0, STEP)
        count += (local_experts(ids_ptr, map_ptr, slot, num_slots, num_experts, num_mapped, HAS_MAP) == expert).to(
            tl.int32
        )
    tl.store(counts_ptr + expert, tl.sum(count, 0))


@triton.jit
def place_slots_kernel(
    ids_ptr, map_ptr, counts_ptr, sorted_ptr, block_experts_ptr, num_padded_ptr, num_slots, num_experts, num_mapped,
    num_blocks, block, HAS_MAP: tl.constexpr, STEPS: tl.constexpr, STEP: tl.constexpr, EXPERTS: tl.constexpr,
    TAIL_STEPS: tl.constexpr, PAD_STEPS: tl.constexpr, EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    """Write one expert's run: its slots in rising order, its padding, its blocks; and a share of what nobody uses."""
    take_turn(EARLY, FOLLOWED)
    expert = tl.program_id(0)
    every = tl.arange(0, EXPERTS)
    blocks = tl.cdiv(tl.load(counts_ptr + every, mask=every < num_experts, other=0), block)
    first = tl.sum(tl.where(every < expert, blocks, 0), 0)
    own = tl.sum(tl.where(every == expert, blocks, 0), 0)
    used = tl.sum(blocks, 0)
    lane = tl.arange(0, STEP)

    placed = 0
    for step in range(STEPS):
        slot = step * STEP + lane
        mine = local_experts(ids_ptr, map_ptr, slot, num_slots, num_experts, num_mapped, HAS_MAP) == expert
        rank = tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(sorted_ptr + first * block + placed + rank, slot, mask=mine)
        placed += tl.sum(mine.to(tl.int32), 0)
    for step in range(PAD_STEPS):
        pad = placed + step * STEP + lane
        tl.store(sorted_ptr + first * block + pad, num_slots, mask=pad < own * block)
    for step in range(TAIL_STEPS):
        # Steps are dealt to the programs in turn.
        at = (step * num_experts + expert) * STEP + lane
        tl.store(sorted_ptr + at, num_slots, mask=(at >= used * block) & (at < num_blocks * block))
        tl.store(block_experts_ptr + at, -1, mask=(at >= used) & (at < num_blocks))
    for step in range(STEPS):
        run = step * STEP + lane
        tl.store(block_experts_ptr + first + run, expert, mask=run < own)
    tl.store(num_padded_ptr, used * block, mask=expert == 0)


def _launch(
    ids: Tensor, num_experts: int, block: int, expert_map: Tensor | None, sorted_slots: Tensor, block_experts: Tensor,
    num_padded: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    slots, blocks = ids.numel(), block_experts.numel()
    mapped = 0 if expert_map is None else expert_map.numel()
    step = WIDE_STEP if slots > MANY_SLOTS else STEP
    read = {"HAS_MAP": expert_map is not None, "STEPS": triton.cdiv(slots, step), "STEP": step, "num_warps": 4}
    read |= chained(capability(ids), num_experts * 4)
    with on_device_of(ids):
        count_slots_kernel[(num_experts,)](ids, expert_map, counts, slots, num_experts, mapped, **read)
        place_slots_kernel[(num_experts,)](
            ids, expert_map, counts, sorted_slots, block_experts, num_padded, slots, num_experts, mapped, blocks, block,
            **read, EXPERTS=power_of_two(num_experts), TAIL_STEPS=triton.cdiv(blocks * block, step * num_experts),
            PAD_STEPS=triton.cdiv(block, step),
        )  # fmt: skip


moe_align, moe_align_out = launched.functions(registered("moe_align", _launch))
