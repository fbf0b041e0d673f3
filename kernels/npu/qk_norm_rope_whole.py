"""Rows of q and k held whole in the unified buffer: read once, summed, normalised, rotated, written once.

Between the halves of ``qk_norm_rope_rows`` ranks add up their sums, so there every row is read twice. A rank alone
holds what it has read; its weights stay in the buffer from its first row to its last.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.npu.qk_norm_rope_rows import angle_of, copy_row, inverse_rms


@triton.jit
def parts_of(
    x, first, heads, BLOCK: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, TURN: tl.constexpr, REST: tl.constexpr
):
    """Channels of dense heads from ``first`` on, float32: first and second of each pair, and those that do not turn."""
    head = first + tl.arange(0, BLOCK)[:, None]
    turn, rest = tl.arange(0, TURN)[None, :], tl.arange(0, REST)[None, :]
    turns, rests = (head < heads) & (turn < HALF), (head < heads) & (rest < D - 2 * HALF)
    a = tl.load(x + head * D + turn, mask=turns, other=0.0).to(tl.float32)
    b = tl.load(x + head * D + HALF + turn, mask=turns, other=0.0).to(tl.float32)
    c = tl.load(x + head * D + 2 * HALF + rest, mask=rests, other=0.0).to(tl.float32)
    return a, b, c


@triton.jit
def squares_of_parts(a, b, c):
    """Sum of squares, in two directions."""
    return tl.sum(tl.sum(a * a, 1), 0) + tl.sum(tl.sum(b * b, 1), 0) + tl.sum(tl.sum(c * c, 1), 0)


@triton.jit
def write_turned(
    y, first, heads, a, b, c, a_weight, b_weight, c_weight, scale, cos, sin,
    BLOCK: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, TURN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Scale and weigh the parts of heads, rotate the pairs (i, HALF + i), round, write."""
    head = first + tl.arange(0, BLOCK)[:, None]
    turn, rest = tl.arange(0, TURN)[None, :], tl.arange(0, REST)[None, :]
    turns, rests = (head < heads) & (turn < HALF), (head < heads) & (rest < D - 2 * HALF)
    dtype = y.dtype.element_ty
    y += head * D
    a, b, c = a * scale * a_weight, b * scale * b_weight, c * scale * c_weight
    tl.store(y + turn, (a * cos - b * sin).to(dtype), mask=turns)
    tl.store(y + HALF + turn, (b * cos + a * sin).to(dtype), mask=turns)
    tl.store(y + 2 * HALF + rest, c.to(dtype), mask=rests)


@triton.jit
def qk_norm_rope_whole_kernel(
    qkv_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, positions_ptr, q_ptr, k_ptr, v_ptr,
    rows, stride, cos_stride, sin_stride, num_positions, q_true_width, k_true_width, eps, Hq, Hk,
    Q_BLOCK: tl.constexpr, Q_MORE: tl.constexpr, K_BLOCK: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    TURN: tl.constexpr, REST: tl.constexpr, V_STEPS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Heads of q in two tiles, whose sizes are powers of two that waste least: M2's 48 are 32 and 16."""
    wa, wb, wc = parts_of(q_weight_ptr, 0, Hq, Q_BLOCK, D, HALF, TURN, REST)
    ua, ub, uc = parts_of(q_weight_ptr, Q_BLOCK, Hq, Q_MORE, D, HALF, TURN, REST)
    ka, kb, kc = parts_of(k_weight_ptr, 0, Hk, K_BLOCK, D, HALF, TURN, REST)
    for t in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(t, tl.int64)
        row = qkv_ptr + at * stride
        cos, sin, in_table = angle_of(
            cos_ptr, sin_ptr, positions_ptr, t, cos_stride, sin_stride, num_positions, HALF, TURN
        )
        a, b, c = parts_of(row, 0, Hq, Q_BLOCK, D, HALF, TURN, REST)
        d, e, f = parts_of(row, Q_BLOCK, Hq, Q_MORE, D, HALF, TURN, REST)
        scale = inverse_rms(squares_of_parts(a, b, c) + squares_of_parts(d, e, f), q_true_width, eps)
        scale = tl.where(in_table, scale, float("nan"))
        q_row = q_ptr + at * (Hq * D)
        write_turned(q_row, 0, Hq, a, b, c, wa, wb, wc, scale, cos, sin, Q_BLOCK, D, HALF, TURN, REST)
        write_turned(q_row, Q_BLOCK, Hq, d, e, f, ua, ub, uc, scale, cos, sin, Q_MORE, D, HALF, TURN, REST)
        a, b, c = parts_of(row + Hq * D, 0, Hk, K_BLOCK, D, HALF, TURN, REST)
        scale = inverse_rms(squares_of_parts(a, b, c), k_true_width, eps)
        scale = tl.where(in_table, scale, float("nan"))
        k_row = k_ptr + at * (Hk * D)
        write_turned(k_row, 0, Hk, a, b, c, ka, kb, kc, scale, cos, sin, K_BLOCK, D, HALF, TURN, REST)
        copy_row(row + (Hq + Hk) * D, v_ptr + at * (Hk * D), Hk * D, V_STEPS, STEP)
