"""Rotate queries and keys by their positions on a GPU: a program takes a few heads of a token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import capability, chained, on_device_of, registered, take_turn
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import rope as launched

# Heads of one program.
TILE = 16


@triton.jit
def angle_of(cos_sin_ptr, positions_ptr, t, stride, num_positions, HALF: tl.constexpr, TURN: tl.constexpr):
    """Cosines and sines of a token ``[1, TURN]``, float32, and whether its position is in the table.

    A position outside it is read from nowhere: the caller spoils the token, and no host waits for the answer.
    """
    position = tl.load(positions_ptr + t).to(tl.int64)
    in_table = (position >= 0) & (position < num_positions)
    turn = tl.arange(0, TURN)
    at = cos_sin_ptr + position * stride + turn
    cos = tl.load(at, mask=in_table & (turn < HALF), other=0.0).to(tl.float32)[None, :]
    sin = tl.load(at + HALF, mask=in_table & (turn < HALF), other=0.0).to(tl.float32)[None, :]
    return cos, sin, in_table


@triton.jit
def turn_heads(x_row, stride, y_row, start, heads, cos, sin, in_table, D: tl.constexpr, HALF: tl.constexpr,
               TILE: tl.constexpr, TURN: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    """Rotate heads ``start .. start + TILE`` of a token, those that exist; NaN where its position is in no table."""
    head = start + tl.arange(0, TILE)[:, None]
    turn, rest = tl.arange(0, TURN)[None, :], tl.arange(0, REST)[None, :]
    turns, rests = (head < heads) & (turn < HALF), (head < heads) & (rest < D - 2 * HALF)
    x, y = x_row + head.to(tl.int64) * stride, y_row + head * D
    first = tl.load(x + turn, mask=turns, other=0.0).to(tl.float32)
    second = tl.load(x + HALF + turn, mask=turns, other=0.0).to(tl.float32)
    passed = tl.load(x + 2 * HALF + rest, mask=rests, other=0.0)
    a = tl.where(in_table, first * cos - second * sin, float("nan"))
    b = tl.where(in_table, second * cos + first * sin, float("nan"))
    dtype = y_row.dtype.element_ty
    tl.store(y + turn, a.to(dtype), mask=turns)
    tl.store(y + HALF + turn, b.to(dtype), mask=turns)
    tl.store(y + 2 * HALF + rest, tl.where(in_table, passed, float("nan")), mask=rests)


@triton.jit
def rope_kernel(
    q_ptr, k_ptr, cos_sin_ptr, positions_ptr, q_out_ptr, k_out_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, table_stride, num_positions, Hq, Hk,
    D: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr, TURN: tl.constexpr, REST: tl.constexpr,
    EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    take_turn(EARLY, FOLLOWED)
    t, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cos, sin, in_table = angle_of(cos_sin_ptr, positions_ptr, t, table_stride, num_positions, HALF, TURN)
    of_q = tl.cdiv(Hq, TILE)
    if tile < of_q:
        turn_heads(
            q_ptr + t * q_stride, q_head_stride, q_out_ptr + t * Hq * D, tile * TILE, Hq, cos, sin, in_table,
            D, HALF, TILE, TURN, REST,
        )  # fmt: skip
    else:
        turn_heads(
            k_ptr + t * k_stride, k_head_stride, k_out_ptr + t * Hk * D, (tile - of_q) * TILE, Hk, cos, sin, in_table,
            D, HALF, TILE, TURN, REST,
        )  # fmt: skip


def _launch(
    q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, rotary_dim: int, q_out: Tensor, k_out: Tensor
) -> None:
    num_tokens, Hq, D = q.shape
    Hk, half = k.shape[1], rotary_dim // 2
    tile = min(TILE, power_of_two(max(Hq, Hk)))
    programs = triton.cdiv(Hq, tile) + triton.cdiv(Hk, tile)
    with on_device_of(q):
        rope_kernel[(num_tokens, programs)](
            q, k, cos_sin, positions, q_out, k_out, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
            cos_sin.stride(0), cos_sin.shape[0], Hq, Hk, D=D, HALF=half, TILE=tile, TURN=power_of_two(half),
            REST=power_of_two(D - rotary_dim), num_warps=4, **chained(capability(q), num_tokens * programs * 4),
        )  # fmt: skip


rope, rope_out = launched.functions(registered("rope", _launch))
