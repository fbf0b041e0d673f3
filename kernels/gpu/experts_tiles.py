"""The three launches of ``experts``: gate and up with SwiGLU, down with its weight, the sum over a token's choices."""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.gpu.codes import e4m3_code, group_scales, quotients
from minimax_m2.kernels.gpu.launch import let_next_start, take_turn, wait_for_predecessor
from minimax_m2.kernels.gpu.scaled_tile import channels, factor, quantised_rows, scaled, weight_tile
from minimax_m2.kernels.gpu.swiglu import gated


@triton.jit
def expert_of(ids_ptr, map_ptr, slot, ok, num_experts, num_mapped, HAS_MAP: tl.constexpr, WORDS: tl.constexpr):
    """The local expert of a slot, -1 for none: an id of the caller, or the upper half of a word of pack_routing."""
    word = tl.load(ids_ptr + slot, mask=ok, other=-1)
    if WORDS:
        expert = (word >> 16).to(tl.int64)
    else:
        expert = word.to(tl.int64)
    if HAS_MAP:
        known = (expert >= 0) & (expert < num_mapped)
        expert = tl.load(map_ptr + expert, mask=known, other=-1).to(tl.int64)
    return tl.where((expert >= 0) & (expert < num_experts), expert, -1)


@triton.jit
def weight_of(weights_ptr, ids_ptr, slot, ok, WORDS: tl.constexpr):
    """The routing weight of a slot, float32."""
    if WORDS:
        weight = (tl.load(ids_ptr + slot, mask=ok, other=0) << 16).to(tl.float32, bitcast=True)
    else:
        weight = tl.load(weights_ptr + slot, mask=ok, other=0.0)
    return weight


@triton.jit
def rows_of_program(
    ids_ptr, map_ptr, sorted_ptr, block_experts_ptr, num_slots, num_experts, num_mapped,
    ROWS: tl.constexpr, SORTED: tl.constexpr, HAS_MAP: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """The expert of this program and its slots: a block of moe_align, or one slot alone where nothing was sorted."""
    block, lane = tl.program_id(1), tl.arange(0, ROWS)
    if SORTED:
        expert = tl.load(block_experts_ptr + block).to(tl.int64)
        slots = tl.load(sorted_ptr + block.to(tl.int64) * ROWS + lane).to(tl.int64)
        ok = slots < num_slots
    else:
        expert = expert_of(ids_ptr, map_ptr, block, block < num_slots, num_experts, num_mapped, HAS_MAP, WORDS)
        slots = tl.zeros((ROWS,), tl.int64) + block
        ok = lane == 0
    return expert, slots, ok


@triton.jit
def gate_up_kernel(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, ids_ptr, map_ptr, sorted_ptr, block_experts_ptr, act_ptr, act_scale_ptr,
    x_stride, num_slots, num_experts, num_mapped, top_k, H, I, block_rows, width, scale_rows, x_groups, act_groups,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
    CODED: tl.constexpr, ACT_CODED: tl.constexpr, SORTED: tl.constexpr, HAS_MAP: tl.constexpr, WORDS: tl.constexpr,
    EVEN: tl.constexpr, FULL: tl.constexpr, ONE_SCALE: tl.constexpr, HARDWARE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``act = silu(x @ gate^T) * (x @ up^T)`` for a tile of slots and columns; coded tiles are one group wide."""
    wait_for_predecessor(EARLY)
    expert, slots, ok = rows_of_program(
        ids_ptr, map_ptr, sorted_ptr, block_experts_ptr, num_slots, num_experts, num_mapped, ROWS, SORTED, HAS_MAP,
        WORDS,
    )  # fmt: skip
    if expert < 0:
        return
    lane = tl.arange(0, COLUMNS)
    step_columns = width if ACT_CODED else COLUMNS
    first = (tl.program_id(0) * step_columns).to(tl.int64)
    n = first + lane
    column_ok = (n < I) & (lane < step_columns)
    token = slots // top_k
    gate_ptr = w_ptr + (expert * (2 * I) + first) * H
    up_ptr = gate_ptr + tl.cast(I, tl.int64) * H
    w_scale_ptr += expert * (scale_rows * STEPS)
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(STEPS):
        start = step * width
        gate_w = weight_tile(gate_ptr, lane, column_ok, H, start, width, H, BLOCK, EVEN, FULL)
        up_w = weight_tile(up_ptr, lane, column_ok, H, start, width, H, BLOCK, EVEN, FULL)
        if SCALED:
            if CODED:
                q = channels(x_ptr, token, ok, x_stride, start, width, H, BLOCK, EVEN)
                q_scale = tl.load(x_scale_ptr + token * x_groups + step, mask=ok, other=0.0)
            else:
                q, q_scale = quantised_rows(x_ptr, token, ok, x_stride, start, width, H, BLOCK, EVEN, HARDWARE)
            left = factor(q, HARDWARE)
            product = tl.dot(left, factor(gate_w, HARDWARE))
            gate += scaled(product, q_scale, w_scale_ptr, n, column_ok, block_rows, STEPS, step, ONE_SCALE)
            product = tl.dot(left, factor(up_w, HARDWARE))
            up += scaled(product, q_scale, w_scale_ptr, I + n, column_ok, block_rows, STEPS, step, ONE_SCALE)
        else:
            x = channels(x_ptr, token, ok, x_stride, start, width, H, BLOCK, EVEN)
            gate += tl.dot(x, gate_w, input_precision="ieee")
            up += tl.dot(x, up_w, input_precision="ieee")
    let_next_start(EARLY)
    act = gated(gate, up)
    inside = ok[:, None] & column_ok[None, :]
    place = slots[:, None] * I + n[None, :]
    if ACT_CODED:
        act = tl.where(inside, act, 0.0)
        scale = group_scales(act, 448.0, False)
        tl.store(act_ptr + place, e4m3_code(quotients(act, scale, 448.0), HARDWARE), mask=inside)
        tl.store(act_scale_ptr + slots * act_groups + tl.program_id(0), scale, mask=ok)
    else:
        tl.store(act_ptr + place, act.to(act_ptr.dtype.element_ty), mask=inside)


@triton.jit
def down_kernel(
    act_ptr, act_scale_ptr, w_ptr, w_scale_ptr, weights_ptr, ids_ptr, map_ptr, sorted_ptr, block_experts_ptr, y_ptr,
    num_slots, num_experts, num_mapped, H, I, block_rows, width, scale_rows,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
    CODED: tl.constexpr, SORTED: tl.constexpr, HAS_MAP: tl.constexpr, WORDS: tl.constexpr, EVEN: tl.constexpr,
    FULL: tl.constexpr, ONE_SCALE: tl.constexpr, HARDWARE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``y[slot] = weight * (act[slot] @ w2^T)`` for a tile of slots and columns."""
    wait_for_predecessor(EARLY)
    expert, slots, ok = rows_of_program(
        ids_ptr, map_ptr, sorted_ptr, block_experts_ptr, num_slots, num_experts, num_mapped, ROWS, SORTED, HAS_MAP,
        WORDS,
    )  # fmt: skip
    if expert < 0:
        return
    lane = tl.arange(0, COLUMNS)
    first = (tl.program_id(0) * COLUMNS).to(tl.int64)
    n = first + lane
    column_ok = n < H
    w_ptr += (expert * H + first) * I
    w_scale_ptr += expert * (scale_rows * STEPS)
    y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(STEPS):
        start = step * width
        w = weight_tile(w_ptr, lane, column_ok, I, start, width, I, BLOCK, EVEN, FULL)
        if SCALED:
            if CODED:
                q = channels(act_ptr, slots, ok, I, start, width, I, BLOCK, EVEN)
                q_scale = tl.load(act_scale_ptr + slots * STEPS + step, mask=ok, other=0.0)
            else:
                q, q_scale = quantised_rows(act_ptr, slots, ok, I, start, width, I, BLOCK, EVEN, HARDWARE)
            product = tl.dot(factor(q, HARDWARE), factor(w, HARDWARE))
            y += scaled(product, q_scale, w_scale_ptr, n, column_ok, block_rows, STEPS, step, ONE_SCALE)
        else:
            act = channels(act_ptr, slots, ok, I, start, width, I, BLOCK, EVEN)
            y += tl.dot(act, w, input_precision="ieee")
    let_next_start(EARLY)
    y *= weight_of(weights_ptr, ids_ptr, slots, ok, WORDS)[:, None]
    tl.store(
        y_ptr + slots[:, None] * H + n[None, :], y.to(y_ptr.dtype.element_ty), mask=ok[:, None] & column_ok[None, :]
    )


@triton.jit
def sum_choices_kernel(
    y_ptr, ids_ptr, map_ptr, out_ptr, num_slots, num_experts, num_mapped, top_k, H,
    CHOICES: tl.constexpr, COLUMNS: tl.constexpr, HAS_MAP: tl.constexpr, WORDS: tl.constexpr,
    EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    """Add a token's choices in their order; a slot without expert was never written and is not read."""
    take_turn(EARLY, FOLLOWED)
    t = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for choice in tl.static_range(CHOICES):
        slot = t * top_k + choice
        expert = expert_of(ids_ptr, map_ptr, slot, slot < num_slots, num_experts, num_mapped, HAS_MAP, WORDS)
        y = tl.load(y_ptr + slot * H + n, mask=(n < H) & (expert >= 0), other=0.0).to(tl.float32)
        total += y
    tl.store(out_ptr + t * H + n, total.to(out_ptr.dtype.element_ty), mask=n < H)
