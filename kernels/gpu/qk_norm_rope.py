"""Normalise q and k over their full widths and rotate them, on a GPU: one program a token holds its whole row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.launch import on_device_of, power_of_two, registered
from minimax_m2.kernels.schema import qk_norm_rope as qk_schema

# Channels of a row that one step of qk_sum_squares reads.
STEP = 2048


@triton.jit
def inverse_rms(squares, width, eps):
    """1 / rms from a sum of squares: both steps correctly rounded, unlike rsqrt."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, width) + eps))


@triton.jit
def load_heads(row, HEADS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, TURN: tl.constexpr,
               REST: tl.constexpr):  # fmt: skip
    """A tile of heads, float32: channels [0, R/2), [R/2, R) and [R, D) apart, so that a pair meets in one thread."""
    head, turn, rest = tl.arange(0, TILE)[:, None], tl.arange(0, TURN)[None, :], tl.arange(0, REST)[None, :]
    turns, rests = (head < HEADS) & (turn < HALF), (head < HEADS) & (rest < D - 2 * HALF)
    first = tl.load(row + head * D + turn, mask=turns, other=0.0).to(tl.float32)
    second = tl.load(row + head * D + HALF + turn, mask=turns, other=0.0).to(tl.float32)
    passed = tl.load(row + head * D + 2 * HALF + rest, mask=rests, other=0.0).to(tl.float32)
    return first, second, passed


@triton.jit
def squares_of(first, second, passed):
    return tl.sum(tl.sum(first * first + second * second, 1) + tl.sum(passed * passed, 1), 0)


@triton.jit
def store_heads(row, first, second, passed, HEADS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr,
                HALF: tl.constexpr, TURN: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    """Write what ``load_heads`` reads."""
    head, turn, rest = tl.arange(0, TILE)[:, None], tl.arange(0, TURN)[None, :], tl.arange(0, REST)[None, :]
    turns, rests = (head < HEADS) & (turn < HALF), (head < HEADS) & (rest < D - 2 * HALF)
    dtype = row.dtype.element_ty
    tl.store(row + head * D + turn, first.to(dtype), mask=turns)
    tl.store(row + head * D + HALF + turn, second.to(dtype), mask=turns)
    tl.store(row + head * D + 2 * HALF + rest, passed.to(dtype), mask=rests)


@triton.jit
def normalise_and_turn(first, second, passed, weight, scale, cos, sin, HEADS: tl.constexpr, TILE: tl.constexpr,
                       D: tl.constexpr, HALF: tl.constexpr, TURN: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    """Scale a tile of heads by its row's 1 / rms and its weights, then rotate its pairs."""
    first_weight, second_weight, passed_weight = load_heads(weight, HEADS, TILE, D, HALF, TURN, REST)
    a, b = first * scale * first_weight, second * scale * second_weight
    return a * cos - b * sin, b * cos + a * sin, passed * scale * passed_weight


@triton.jit
def qk_norm_rope_kernel(
    qkv_ptr, stats_ptr, q_weight_ptr, k_weight_ptr, cos_sin_ptr, positions_ptr, q_ptr, k_ptr, v_ptr,
    qkv_stride, table_stride, num_positions, q_width, k_width, eps,
    Hq: tl.constexpr, Hk: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    Q_TILE: tl.constexpr, K_TILE: tl.constexpr, TURN: tl.constexpr, REST: tl.constexpr, HAS_STATS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    row = qkv_ptr + t * qkv_stride
    q_first, q_second, q_passed = load_heads(row, Hq, Q_TILE, D, HALF, TURN, REST)
    k_first, k_second, k_passed = load_heads(row + Hq * D, Hk, K_TILE, D, HALF, TURN, REST)

    # A position outside the table is read from nowhere and spoils its token's q and k: no host waits here.
    position = tl.load(positions_ptr + t).to(tl.int64)
    in_table = (position >= 0) & (position < num_positions)
    turn = tl.arange(0, TURN)
    angle = cos_sin_ptr + position * table_stride + turn
    cos = tl.load(angle, mask=in_table & (turn < HALF), other=0.0).to(tl.float32)[None, :]
    sin = tl.load(angle + HALF, mask=in_table & (turn < HALF), other=0.0).to(tl.float32)[None, :]

    if HAS_STATS:
        q_squares, k_squares = tl.load(stats_ptr + 2 * t), tl.load(stats_ptr + 2 * t + 1)
    else:
        q_squares, k_squares = squares_of(q_first, q_second, q_passed), squares_of(k_first, k_second, k_passed)
    q_scale = tl.where(in_table, inverse_rms(q_squares, q_width, eps), float("nan"))
    k_scale = tl.where(in_table, inverse_rms(k_squares, k_width, eps), float("nan"))

    a, b, c = normalise_and_turn(
        q_first, q_second, q_passed, q_weight_ptr, q_scale, cos, sin, Hq, Q_TILE, D, HALF, TURN, REST
    )
    store_heads(q_ptr + t * (Hq * D), a, b, c, Hq, Q_TILE, D, HALF, TURN, REST)
    a, b, c = normalise_and_turn(
        k_first, k_second, k_passed, k_weight_ptr, k_scale, cos, sin, Hk, K_TILE, D, HALF, TURN, REST
    )
    store_heads(k_ptr + t * (Hk * D), a, b, c, Hk, K_TILE, D, HALF, TURN, REST)
    a, b, c = load_heads(row + (Hq + Hk) * D, Hk, K_TILE, D, HALF, TURN, REST)
    store_heads(v_ptr + t * (Hk * D), a, b, c, Hk, K_TILE, D, HALF, TURN, REST)


@triton.jit
def qk_sum_squares_kernel(
    qkv_ptr, stats_ptr, stride, q_width, k_width,
    Q_STEPS: tl.constexpr, K_STEPS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    row = qkv_ptr + t * stride
    q = tl.zeros((STEP,), tl.float32)
    for step in range(Q_STEPS):
        at = step * STEP + tl.arange(0, STEP)
        x = tl.load(row + at, mask=at < q_width, other=0.0).to(tl.float32)
        q += x * x
    k = tl.zeros((STEP,), tl.float32)
    for step in range(K_STEPS):
        at = step * STEP + tl.arange(0, STEP)
        x = tl.load(row + q_width + at, mask=at < k_width, other=0.0).to(tl.float32)
        k += x * x
    tl.store(stats_ptr + 2 * t, tl.sum(q, 0))
    tl.store(stats_ptr + 2 * t + 1, tl.sum(k, 0))


def _launch(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
    q: Tensor, k: Tensor, v: Tensor,
) -> None:  # fmt: skip
    q_tile, turn = power_of_two(num_heads), power_of_two(rotary_dim // 2)
    rest = power_of_two(head_dim - rotary_dim)
    with on_device_of(qkv):
        qk_norm_rope_kernel[(qkv.shape[0],)](
            qkv, stats, q_weight, k_weight, cos_sin, positions, q, k, v, qkv.stride(0), cos_sin.stride(0),
            cos_sin.shape[0], float(q_width), float(k_width), eps, Hq=num_heads, Hk=num_kv_heads, D=head_dim,
            HALF=rotary_dim // 2, Q_TILE=q_tile, K_TILE=power_of_two(num_kv_heads), TURN=turn, REST=rest,
            HAS_STATS=stats is not None, num_warps=warps_of(q_tile * (2 * turn + rest)),
        )  # fmt: skip


def _launch_sums(qkv: Tensor, num_heads: int, head_dim: int, counted_kv_heads: int, stats: Tensor) -> None:
    q_width, k_width = num_heads * head_dim, counted_kv_heads * head_dim
    with on_device_of(qkv):
        qk_sum_squares_kernel[(qkv.shape[0],)](
            qkv, stats, qkv.stride(0), q_width, k_width,
            Q_STEPS=triton.cdiv(q_width, STEP), K_STEPS=triton.cdiv(k_width, STEP), STEP=STEP, num_warps=8,
        )  # fmt: skip


def warps_of(elements: int) -> int:
    """Warps that share a token: at most 32 elements a thread, up to 16 warps."""
    return min(16, max(1, power_of_two(elements) // 1024))


_call = registered("qk_norm_rope", _launch)
_call_sums = registered("qk_sum_squares", _launch_sums)


def qk_sum_squares(
    qkv: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int, counted_kv_heads: int | None = None
) -> Tensor:
    """Sum the squares of each token's local q and k channels: ``[T, 2]`` float32, q then k.

    qkv  [T, (Hq + 2*Hk)*D] float32, bfloat16 or float16, row stride free

    Only the first ``counted_kv_heads`` (None: all) enter the sum of k. Summed in float32, one program a token.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    qk_schema.check_qkv(qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    counted = qk_schema.counted(counted_kv_heads, num_kv_heads=num_kv_heads)

    stats = torch.empty((qkv.shape[0], 2), dtype=torch.float32, device=qkv.device)

    if qkv.shape[0] > 0:
        _call_sums(qkv, num_heads, head_dim, counted, stats)
    return stats


def qk_sum_squares_out(
    qkv: Tensor, stats: Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int,
    counted_kv_heads: int | None = None,
) -> None:  # fmt: skip
    """Do what ``qk_sum_squares`` does, into ``stats``, contiguous ``[T, 2]`` float32."""
    qk_schema.check_qkv(qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    qk_schema.check_stats(stats, num_tokens=qkv.shape[0], device=qkv.device)
    counted = qk_schema.counted(counted_kv_heads, num_kv_heads=num_kv_heads)

    if qkv.shape[0] > 0:
        _call_sums(qkv, num_heads, head_dim, counted, stats)


def qk_norm_rope(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, *,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Normalise q and k over their full widths, split heads, rotate the first R channels of each; copy v.

        q' = rope(q * rsqrt(stats_q / q_width + eps) * q_weight), k' likewise, v' = v

    qkv                 [T, (Hq + 2*Hk)*D] float32, bfloat16 or float16, row stride free; D up to 512
    stats               [T, 2] float32, sums of squares over all ranks; None: summed here, this rank is the only one
    q_weight, k_weight  [Hq*D], [Hk*D], both float32 or both of qkv's dtype
    cos_sin, positions  as in rope; a token whose position is outside the table gets NaN
    q_width, k_width    true widths of the model, whatever is padded or replicated
    returns             q [T, Hq, D], k, v [T, Hk, D], contiguous, dtype of qkv

    Computed in float32 and rounded once.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    qk_schema.check(
        qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_dim=head_dim, rotary_dim=rotary_dim, q_width=q_width, k_width=k_width, eps=eps,
    )  # fmt: skip

    num_tokens = qkv.shape[0]
    q = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    k = torch.empty((num_tokens, num_kv_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    v = torch.empty((num_tokens, num_kv_heads, head_dim), dtype=qkv.dtype, device=qkv.device)

    if num_tokens > 0:
        _call(
            qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads, num_kv_heads, head_dim, rotary_dim,
            q_width, k_width, eps, q, k, v,
        )  # fmt: skip
    return q, k, v


def qk_norm_rope_out(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    q: Tensor, k: Tensor, v: Tensor, *,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
) -> None:  # fmt: skip
    """Do what ``qk_norm_rope`` does, into ``q``, ``k`` and ``v``, contiguous and apart from qkv."""
    qk_schema.check(
        qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_dim=head_dim, rotary_dim=rotary_dim, q_width=q_width, k_width=k_width, eps=eps,
    )  # fmt: skip
    qk_schema.check_outputs(qkv, q, k, v, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)

    if qkv.shape[0] > 0:
        _call(
            qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads, num_kv_heads, head_dim, rotary_dim,
            q_width, k_width, eps, q, k, v,
        )  # fmt: skip
