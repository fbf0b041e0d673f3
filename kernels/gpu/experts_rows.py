"""Gate and up, and down, of ``experts`` for so few slots that each reads its expert's e4m3 rows for itself."""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.gpu.experts_tiles import expert_of, weight_of
from minimax_m2.kernels.gpu.launch import let_next_start, wait_for_predecessor
from minimax_m2.kernels.gpu.scaled_rows import code_tiles, group_sums, quantised_groups, scale_tiles
from minimax_m2.kernels.gpu.swiglu import gated


@triton.jit
def gate_up_rows_kernel(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, ids_ptr, map_ptr, act_ptr, x_stride, num_slots, num_experts, num_mapped,
    top_k, H, I, block_rows, width, scale_rows, num_groups,
    COLUMNS: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
    CODED: tl.constexpr, HAS_MAP: tl.constexpr, WORDS: tl.constexpr, HARDWARE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``act[slot] = silu(x @ gate^T) * (x @ up^T)``, float32, for some columns of one slot."""
    slot = tl.program_id(1)
    wait_for_predecessor(EARLY)
    let_next_start(EARLY)
    expert = expert_of(ids_ptr, map_ptr, slot, slot < num_slots, num_experts, num_mapped, HAS_MAP, WORDS)
    if expert < 0:
        return
    first = tl.program_id(0) * COLUMNS
    n = first + tl.arange(0, COLUMNS)
    n_ok = n < I
    gate_ptr = w_ptr + (expert * (2 * I) + first) * H
    up_ptr = gate_ptr + tl.cast(I, tl.int64) * H
    gate_codes = code_tiles(gate_ptr, H, COLUMNS, n_ok, width, H, GROUPS, BLOCK, STEPS, EVEN)
    up_codes = code_tiles(up_ptr, H, COLUMNS, n_ok, width, H, GROUPS, BLOCK, STEPS, EVEN)
    w_scale_ptr += expert * (scale_rows * num_groups)
    gate_scales = scale_tiles(w_scale_ptr, n // block_rows, n_ok, num_groups, num_groups, GROUPS, STEPS)
    up_scales = scale_tiles(w_scale_ptr, (I + n) // block_rows, n_ok, num_groups, num_groups, GROUPS, STEPS)
    token = (slot // top_k).to(tl.int64)
    gate = tl.zeros((COLUMNS, GROUPS), tl.float32)
    up = tl.zeros((COLUMNS, GROUPS), tl.float32)
    for step in tl.static_range(STEPS):
        q, q_scale = quantised_groups(
            x_ptr + token * x_stride, x_scale_ptr + token * num_groups if CODED else x_scale_ptr, True, step, width, H,
            num_groups, GROUPS, BLOCK, CODED, HARDWARE,
        )  # fmt: skip
        gate += group_sums(gate_codes[step], q, q_scale, gate_scales[step], HARDWARE)
        up += group_sums(up_codes[step], q, q_scale, up_scales[step], HARDWARE)
    tl.store(act_ptr + slot.to(tl.int64) * I + n, gated(tl.sum(gate, 1), tl.sum(up, 1)), mask=n_ok)


@triton.jit
def down_rows_kernel(
    act_ptr, w_ptr, w_scale_ptr, weights_ptr, ids_ptr, map_ptr, y_ptr, num_slots, num_experts, num_mapped, H, I,
    block_rows, width, scale_rows, num_groups,
    COLUMNS: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
    HAS_MAP: tl.constexpr, WORDS: tl.constexpr, HARDWARE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``y[slot] = weight * (act[slot] @ w2^T)`` for some columns of one slot."""
    slot = tl.program_id(1)
    # Ids are older than the launch before this one, which began after they were written; so weights may be read now.
    expert = expert_of(ids_ptr, map_ptr, slot, slot < num_slots, num_experts, num_mapped, HAS_MAP, WORDS)
    if expert < 0:
        # Waited for all the same: a launch of which no program waits would end before the one ahead of it.
        wait_for_predecessor(EARLY)
        return
    first = tl.program_id(0) * COLUMNS
    n = first + tl.arange(0, COLUMNS)
    n_ok = n < H
    codes = code_tiles(w_ptr + (expert * H + first) * I, I, COLUMNS, n_ok, width, I, GROUPS, BLOCK, STEPS, EVEN)
    w_scale_ptr += expert * (scale_rows * num_groups)
    scales = scale_tiles(w_scale_ptr, n // block_rows, n_ok, num_groups, num_groups, GROUPS, STEPS)
    wait_for_predecessor(EARLY)
    let_next_start(EARLY)
    y = tl.zeros((COLUMNS, GROUPS), tl.float32)
    for step in tl.static_range(STEPS):
        q, q_scale = quantised_groups(
            act_ptr + slot.to(tl.int64) * I, None, True, step, width, I, num_groups, GROUPS, BLOCK, False, HARDWARE
        )
        y += group_sums(codes[step], q, q_scale, scales[step], HARDWARE)
    weighted = tl.sum(y, 1) * weight_of(weights_ptr, ids_ptr, slot, slot < num_slots, WORDS)
    tl.store(y_ptr + slot.to(tl.int64) * H + n, weighted.to(y_ptr.dtype.element_ty), mask=n_ok)
