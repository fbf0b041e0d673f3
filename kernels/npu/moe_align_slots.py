"""Slots counted and placed by expert, without atomics: what is looked up is found by comparing all with all.

A vector core gathers and adds up in order one number at a time; it compares 64 at once. So a tile of slots meets a tile
of experts as a square, and a sum along one side is a count, a place or a rank. Only the last stores are one by one:
slots go where their experts' runs are.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def local_experts(
    ids_ptr, map_ptr, slot, num_slots, num_mapped, map_tiles,
    WORDS: tl.constexpr, SLOTS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """The expert of each slot after translation, int32; negative where it has none.

    WORDS  of 32 bits that an id has; one that needs both has no expert.
    """
    there = slot < num_slots
    expert = tl.load(ids_ptr + slot * WORDS, mask=there, other=-1)
    if WORDS == 2:
        upper = tl.load(ids_ptr + slot * WORDS + 1, mask=there, other=-1)
        expert = tl.where(upper == (expert >> 31), expert, -1)
    if map_ptr is not None:
        # One more than the expert, so that what meets nothing has none.
        found = tl.zeros((SLOTS,), tl.int32)
        for tile in range(map_tiles):
            e = tile * EXPERTS + tl.arange(0, EXPERTS)
            local = tl.load(map_ptr + e, mask=e < num_mapped, other=-1)
            found += tl.sum(tl.where(expert[:, None] == e[None, :], local[None, :] + 1, 0), 1)
        expert = found - 1
    return expert


@triton.jit
def count_slots_kernel(
    ids_ptr, map_ptr, tile_counts_ptr, sorted_ptr, num_slots, num_experts, num_mapped, map_tiles, slot_tiles,
    expert_tiles, num_padded, fills,
    WORDS: tl.constexpr, SLOTS: tl.constexpr, EXPERTS: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """Count each tile's slots by expert; and lay padding wherever a slot may come."""
    for tile in range(tl.program_id(0), slot_tiles, tl.num_programs(0)):
        slot = tile * SLOTS + tl.arange(0, SLOTS)
        expert = local_experts(ids_ptr, map_ptr, slot, num_slots, num_mapped, map_tiles, WORDS, SLOTS, EXPERTS)
        for group in range(expert_tiles):
            e = group * EXPERTS + tl.arange(0, EXPERTS)
            count = tl.sum(tl.where(expert[:, None] == e[None, :], 1, 0), 0)
            tl.store(tile_counts_ptr + tile * num_experts + e, count, mask=e < num_experts)
    padding = tl.zeros((FILL,), tl.int32) + num_slots
    for fill in range(tl.program_id(0), fills, tl.num_programs(0)):
        at = fill * FILL + tl.arange(0, FILL)
        tl.store(sorted_ptr + at, padding, mask=at < num_padded)


@triton.jit
def count_of(tile_counts_ptr, e, num_experts, slot_tiles, EXPERTS: tl.constexpr):
    """Slots of a tile of experts, int32."""
    count = tl.zeros((EXPERTS,), tl.int32)
    for tile in range(slot_tiles):
        count += tl.load(tile_counts_ptr + tile * num_experts + e, mask=e < num_experts, other=0)
    return count


@triton.jit
def blocks_of(count, block):
    """Blocks that hold so many slots; float32 has every count, and its quotient never reaches a whole too early."""
    return ((count + block - 1).to(tl.float32) / block).to(tl.int32)


@triton.jit
def place_experts_kernel(
    tile_counts_ptr, starts_ptr, ends_ptr, counts_ptr, num_experts, slot_tiles, expert_tiles, block,
    EXPERTS: tl.constexpr,
):  # fmt: skip
    """Count experts, end their runs of blocks, and find where each tile's slots of an expert start."""
    for own in range(tl.program_id(0), expert_tiles, tl.num_programs(0)):
        e = own * EXPERTS + tl.arange(0, EXPERTS)
        ends = tl.zeros((EXPERTS,), tl.int32)
        for other in range(expert_tiles):
            o = other * EXPERTS + tl.arange(0, EXPERTS)
            blocks = blocks_of(count_of(tile_counts_ptr, o, num_experts, slot_tiles, EXPERTS), block)
            ends += tl.sum(tl.where(o[None, :] <= e[:, None], blocks[None, :], 0), 1)
        count = count_of(tile_counts_ptr, e, num_experts, slot_tiles, EXPERTS)
        start = (ends - blocks_of(count, block)) * block
        inside = e < num_experts
        for tile in range(slot_tiles):
            at = tile * num_experts + e
            tl.store(starts_ptr + at, start, mask=inside)
            start += tl.load(tile_counts_ptr + at, mask=inside, other=0)
        tl.store(counts_ptr + e, count, mask=inside)
        tl.store(ends_ptr + e, ends, mask=inside)


@triton.jit
def place_slots_kernel(
    ids_ptr, map_ptr, starts_ptr, ends_ptr, sorted_ptr, block_experts_ptr, num_padded_ptr, num_slots, num_experts,
    num_mapped, map_tiles, slot_tiles, expert_tiles, num_blocks, block_tiles, block,
    WORDS: tl.constexpr, SLOTS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """Put slots where their experts' runs are, in their order; and name the expert of each block."""
    lane = tl.arange(0, SLOTS)
    for tile in range(tl.program_id(0), slot_tiles, tl.num_programs(0)):
        slot = tile * SLOTS + lane
        expert = local_experts(ids_ptr, map_ptr, slot, num_slots, num_mapped, map_tiles, WORDS, SLOTS, EXPERTS)
        # Slots before this one, of its expert: those of earlier tiles, then those of its own.
        place = tl.zeros((SLOTS,), tl.int32)
        for group in range(expert_tiles):
            e = group * EXPERTS + tl.arange(0, EXPERTS)
            start = tl.load(starts_ptr + tile * num_experts + e, mask=e < num_experts, other=0)
            place += tl.sum(tl.where(expert[:, None] == e[None, :], start[None, :], 0), 1)
        before = (expert[:, None] == expert[None, :]) & (lane[None, :] < lane[:, None])
        place += tl.sum(tl.where(before, 1, 0), 1)
        place = tl.where((expert >= 0) & (expert < num_experts), place, -1)
        # triton-ascend 3.2.0 does not lower a store to computed places: each slot is stored alone.
        for i in range(SLOTS):
            at = tl.max(tl.where(lane == i, place, -1), 0)
            if at >= 0:
                tl.store(sorted_ptr + at, tile * SLOTS + i)
    used = tl.load(ends_ptr + num_experts - 1)
    for tile in range(tl.program_id(0), block_tiles, tl.num_programs(0)):
        b = tile * SLOTS + lane
        # Experts whose runs have ended: the next one's run is the block's.
        ended = tl.zeros((SLOTS,), tl.int32)
        for group in range(expert_tiles):
            e = group * EXPERTS + tl.arange(0, EXPERTS)
            ends = tl.load(ends_ptr + e, mask=e < num_experts, other=num_blocks)
            ended += tl.sum(tl.where(ends[None, :] <= b[:, None], 1, 0), 1)
        tl.store(block_experts_ptr + b, tl.where(b < used, ended, -1), mask=b < num_blocks)
    if tl.program_id(0) == 0:
        tl.store(num_padded_ptr, used * block)
