"""Rows of q, k and v in the language of Triton 3.2: sums of squares, and norm with rotation, a program many rows.

Nothing but Triton is imported: the compiler of an NPU lives in an environment without torch. A kernel keeps to 192 KiB
of unified buffer, adds no integers of 64 bits lane by lane, and computes in float32: what it loads it widens at once,
what it stores it rounds once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def squares_of(row, width, STEPS: tl.constexpr, STEP: tl.constexpr):
    """Sum of squares of ``width`` channels, float32, ``STEP`` at a time.

    Added up in two directions: 2048 numbers one after the other would lose four times what 64 and then 32 do.
    """
    sums = tl.zeros((STEP,), tl.float32)
    for step in range(STEPS):
        at = step * STEP + tl.arange(0, STEP)
        x = tl.load(row + at, mask=at < width, other=0.0).to(tl.float32)
        sums += x * x
    return tl.sum(tl.sum(tl.reshape(sums, (STEP // 64, 64)), 1), 0)


@triton.jit
def qk_sum_squares_kernel(
    qkv_ptr, stats_ptr, rows, stride, q_width, k_width,
    Q_STEPS: tl.constexpr, K_STEPS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    for t in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = qkv_ptr + tl.cast(t, tl.int64) * stride
        tl.store(stats_ptr + 2 * t, squares_of(row, q_width, Q_STEPS, STEP))
        tl.store(stats_ptr + 2 * t + 1, squares_of(row + q_width, k_width, K_STEPS, STEP))


@triton.jit
def angle_of(
    cos_ptr, sin_ptr, positions_ptr, t, cos_stride, sin_stride, num_positions, HALF: tl.constexpr, TURN: tl.constexpr
):
    """Cosines and sines of a token ``[1, TURN]``, float32, and whether its position is in the tables.

    Its row is that of its position, or without positions its own. A row that is not there is read from nowhere: the
    caller spoils the token.
    """
    position = tl.cast(t, tl.int64)
    if positions_ptr is not None:
        position = tl.load(positions_ptr + t).to(tl.int64)
    in_table = (position >= 0) & (position < num_positions)
    row, turn = tl.where(in_table, position, 0), tl.arange(0, TURN)
    cos = tl.load(cos_ptr + row * cos_stride + turn, mask=turn < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + row * sin_stride + turn, mask=turn < HALF, other=0.0).to(tl.float32)
    return cos[None, :], sin[None, :], in_table


@triton.jit
def turn_heads(
    x_row, stride, weight, y_row, scale, cos, sin, heads,
    TILES: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, TURN: tl.constexpr,
    REST: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Scale the heads of a row, which lie ``stride`` apart, rotate the pairs (i, HALF + i), round, write them dense.

    With ``NORM`` channels are multiplied by their weights, too.
    """
    turn, rest = tl.arange(0, TURN)[None, :], tl.arange(0, REST)[None, :]
    dtype = y_row.dtype.element_ty
    for tile in range(TILES):
        head = tile * TILE + tl.arange(0, TILE)[:, None]
        turns, rests = (head < heads) & (turn < HALF), (head < heads) & (rest < D - 2 * HALF)
        x, y = x_row + head * stride, y_row + head * D
        a = tl.load(x + turn, mask=turns, other=0.0).to(tl.float32) * scale
        b = tl.load(x + HALF + turn, mask=turns, other=0.0).to(tl.float32) * scale
        if NORM:
            a = a * tl.load(weight + head * D + turn, mask=turns, other=0.0).to(tl.float32)
            b = b * tl.load(weight + head * D + HALF + turn, mask=turns, other=0.0).to(tl.float32)
        tl.store(y + turn, (a * cos - b * sin).to(dtype), mask=turns)
        tl.store(y + HALF + turn, (b * cos + a * sin).to(dtype), mask=turns)
        if D > 2 * HALF:
            c = tl.load(x + 2 * HALF + rest, mask=rests, other=0.0).to(tl.float32) * scale
            if NORM:
                c = c * tl.load(weight + head * D + 2 * HALF + rest, mask=rests, other=0.0).to(tl.float32)
            tl.store(y + 2 * HALF + rest, c.to(dtype), mask=rests)


@triton.jit
def copy_row(x_row, y_row, width, STEPS: tl.constexpr, STEP: tl.constexpr):
    for step in range(STEPS):
        at = step * STEP + tl.arange(0, STEP)
        tl.store(y_row + at, tl.load(x_row + at, mask=at < width), mask=at < width)


@triton.jit
def inverse_rms(squares, width, eps):
    """1 / rms from a sum of squares, by two roundings of a scalar, not by a reciprocal square root."""
    return 1.0 / tl.sqrt(squares / width + eps)


@triton.jit
def qk_norm_rope_kernel(
    qkv_ptr, stats_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr, positions_ptr, q_ptr, k_ptr, v_ptr,
    rows, stride, cos_stride, sin_stride, num_positions, q_true_width, k_true_width, eps, Hq, Hk,
    Q_TILES: tl.constexpr, K_TILES: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    TURN: tl.constexpr, REST: tl.constexpr, V_STEPS: tl.constexpr, STEP: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    for t in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(t, tl.int64)
        row = qkv_ptr + at * stride
        cos, sin, in_table = angle_of(
            cos_ptr, sin_ptr, positions_ptr, t, cos_stride, sin_stride, num_positions, HALF, TURN
        )
        q_scale, k_scale = 1.0, 1.0
        if NORM:
            q_scale = inverse_rms(tl.load(stats_ptr + 2 * t), q_true_width, eps)
            k_scale = inverse_rms(tl.load(stats_ptr + 2 * t + 1), k_true_width, eps)
        q_scale = tl.where(in_table, q_scale, float("nan"))
        k_scale = tl.where(in_table, k_scale, float("nan"))
        turn_heads(
            row, D, q_weight_ptr, q_ptr + at * (Hq * D), q_scale, cos, sin, Hq,
            Q_TILES, TILE, D, HALF, TURN, REST, NORM,
        )  # fmt: skip
        turn_heads(
            row + Hq * D, D, k_weight_ptr, k_ptr + at * (Hk * D), k_scale, cos, sin, Hk,
            K_TILES, TILE, D, HALF, TURN, REST, NORM,
        )  # fmt: skip
        copy_row(row + (Hq + Hk) * D, v_ptr + at * (Hk * D), Hk * D, V_STEPS, STEP)


@triton.jit
def rope_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, positions_ptr, q_out_ptr, k_out_ptr,
    rows, q_stride, q_head_stride, k_stride, k_head_stride, cos_stride, sin_stride, num_positions, Hq, Hk,
    Q_TILES: tl.constexpr, K_TILES: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    TURN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    for t in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(t, tl.int64)
        cos, sin, in_table = angle_of(
            cos_ptr, sin_ptr, positions_ptr, t, cos_stride, sin_stride, num_positions, HALF, TURN
        )
        scale = tl.where(in_table, 1.0, float("nan"))
        turn_heads(
            q_ptr + at * q_stride, q_head_stride, q_ptr, q_out_ptr + at * (Hq * D), scale, cos, sin, Hq,
            Q_TILES, TILE, D, HALF, TURN, REST, False,
        )  # fmt: skip
        turn_heads(
            k_ptr + at * k_stride, k_head_stride, k_ptr, k_out_ptr + at * (Hk * D), scale, cos, sin, Hk,
            K_TILES, TILE, D, HALF, TURN, REST, False,
        )  # fmt: skip
