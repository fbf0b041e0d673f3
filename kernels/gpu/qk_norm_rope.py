"""Normalise q and k over their full widths and rotate them, on a GPU: one program a token holds its whole row.

The heads of other ranks enter by ``stats``, or by a mailbox through which programs exchange their sums themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.kv_cache_entries import entry, offsets_of
from minimax_m2.kernels.gpu.launch import (
    capability,
    chained,
    converts_e4m3,
    on_device_of,
    registered,
    take_turn,
)
from minimax_m2.kernels.gpu.mailbox import Mailbox, arguments, summed_over_ranks
from minimax_m2.kernels.gpu.rope import angle_of
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import qk_norm_rope as launched

# Channels of a row that one step of qk_sum_squares reads.
STEP = 2048
# Programs that share the rows of many tokens, about two on each multiprocessor of a large GPU and few enough to let the
# next launch begin early, and the rows of each that are on their way or being made.
PROGRAMS, STAGES = 256, 3


@triton.jit
def inverse_rms(squares, width, eps):
    """1 / rms from a sum of squares: both steps correctly rounded, unlike rsqrt."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, width) + eps))


@triton.jit
def load_heads(row, HEADS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, TURN: tl.constexpr,
               REST: tl.constexpr):  # fmt: skip
    """A tile of heads, float32: channels [0, R/2), [R/2, R) and [R, D) apart, so that a pair meets in one thread."""
    head, turn, rest = tl.arange(0, TILE)[:, None], tl.arange(0, TURN)[None, :], tl.arange(0, REST)[None, :]
    at = row + head * D
    if HEADS == TILE and TURN == HALF:
        first, second = tl.load(at + turn), tl.load(at + HALF + turn)
    else:
        turns = (head < HEADS) & (turn < HALF)
        first, second = tl.load(at + turn, mask=turns, other=0.0), tl.load(at + HALF + turn, mask=turns, other=0.0)
    if HEADS == TILE and REST == D - 2 * HALF:
        passed = tl.load(at + 2 * HALF + rest)
    else:
        passed = tl.load(at + 2 * HALF + rest, mask=(head < HEADS) & (rest < D - 2 * HALF), other=0.0)
    return first.to(tl.float32), second.to(tl.float32), passed.to(tl.float32)


@triton.jit
def squares_of(first, second, passed, COUNTED: tl.constexpr, TILE: tl.constexpr):
    """Sum the squares of a tile's first heads: of replicas only one is counted."""
    heads = tl.sum(first * first + second * second, 1) + tl.sum(passed * passed, 1)
    if COUNTED < TILE:
        heads = tl.where(tl.arange(0, TILE) < COUNTED, heads, 0.0)
    return tl.sum(heads, 0)


@triton.jit
def store_heads(row, stride, first, second, passed, CODED: tl.constexpr, HARDWARE: tl.constexpr, HEADS: tl.constexpr,
                TILE: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, TURN: tl.constexpr,
                REST: tl.constexpr):  # fmt: skip
    """Write what ``load_heads`` reads, to heads that lie ``stride`` apart."""
    head, turn, rest = tl.arange(0, TILE)[:, None], tl.arange(0, TURN)[None, :], tl.arange(0, REST)[None, :]
    at = row + head * stride
    dtype: tl.constexpr = row.dtype.element_ty
    a, b = entry(first, dtype, CODED, HARDWARE), entry(second, dtype, CODED, HARDWARE)
    c = entry(passed, dtype, CODED, HARDWARE)
    if HEADS == TILE and TURN == HALF:
        tl.store(at + turn, a)
        tl.store(at + HALF + turn, b)
    else:
        turns = (head < HEADS) & (turn < HALF)
        tl.store(at + turn, a, mask=turns)
        tl.store(at + HALF + turn, b, mask=turns)
    if HEADS == TILE and REST == D - 2 * HALF:
        tl.store(at + 2 * HALF + rest, c)
    else:
        tl.store(at + 2 * HALF + rest, c, mask=(head < HEADS) & (rest < D - 2 * HALF))


@triton.jit
def normalise_turn_store(row, stride, first, second, passed, first_weight, second_weight, passed_weight, scale, cos,
                         sin, dtype: tl.constexpr, CODED: tl.constexpr, HARDWARE: tl.constexpr, HEADS: tl.constexpr,
                         TILE: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, TURN: tl.constexpr,
                         REST: tl.constexpr):  # fmt: skip
    """Scale a tile of heads by its row's 1 / rms and its weights, rotate its pairs, round to ``dtype``, write it."""
    a, b = first * scale * first_weight, second * scale * second_weight
    c = (passed * scale * passed_weight).to(dtype)
    store_heads(
        row, stride, (a * cos - b * sin).to(dtype), (b * cos + a * sin).to(dtype), c, CODED, HARDWARE, HEADS, TILE, D,
        HALF, TURN, REST,
    )  # fmt: skip


@triton.jit(do_not_specialize=["place"])
def qk_norm_rope_kernel(
    qkv_ptr, stats_ptr, q_weight_ptr, k_weight_ptr, cos_sin_ptr, positions_ptr, slots_ptr, q_ptr, k_ptr, v_ptr,
    num_tokens, qkv_stride, table_stride, num_positions, q_width, k_width, eps, page, num_slots,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    boxes_ptr, turns_ptr, missing_ptr, patience, place,
    Hq: tl.constexpr, Hk: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    Q_TILE: tl.constexpr, MORE: tl.constexpr, MORE_TILE: tl.constexpr, K_TILE: tl.constexpr, TURN: tl.constexpr,
    REST: tl.constexpr, HAS_STATS: tl.constexpr, CODED: tl.constexpr, HARDWARE: tl.constexpr, EARLY: tl.constexpr,
    COUNTED: tl.constexpr, RANK: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
    FOLLOWED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # On their way before the rows are: no row waits for them after its sums.
    qa, qb, qc = load_heads(q_weight_ptr, Q_TILE, Q_TILE, D, HALF, TURN, REST)
    if MORE > 0:
        ra, rb, rc = load_heads(q_weight_ptr + Q_TILE * D, MORE, MORE_TILE, D, HALF, TURN, REST)
    ka, kb, kc = load_heads(k_weight_ptr, Hk, K_TILE, D, HALF, TURN, REST)
    take_turn(EARLY, FOLLOWED)
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    # While one row is made, the next is fetched.
    for token in tl.range(tl.program_id(0), num_tokens, tl.num_programs(0), num_stages=STAGES):
        t = tl.cast(token, tl.int64)
        row = qkv_ptr + t * qkv_stride
        q_first, q_second, q_passed = load_heads(row, Q_TILE, Q_TILE, D, HALF, TURN, REST)
        if MORE > 0:
            r_first, r_second, r_passed = load_heads(row + Q_TILE * D, MORE, MORE_TILE, D, HALF, TURN, REST)
        k_first, k_second, k_passed = load_heads(row + Hq * D, Hk, K_TILE, D, HALF, TURN, REST)
        v_first, v_second, v_passed = load_heads(row + (Hq + Hk) * D, Hk, K_TILE, D, HALF, TURN, REST)
        cos, sin, in_table = angle_of(cos_sin_ptr, positions_ptr, t, table_stride, num_positions, HALF, TURN)

        if HAS_STATS:
            q_squares, k_squares = tl.load(stats_ptr + 2 * t), tl.load(stats_ptr + 2 * t + 1)
        else:
            q_squares = squares_of(q_first, q_second, q_passed, Q_TILE, Q_TILE)
            k_squares = squares_of(k_first, k_second, k_passed, COUNTED, K_TILE)
            if MORE > 0:
                q_squares += squares_of(r_first, r_second, r_passed, MORE, MORE_TILE)
            if RANKS > 1:
                q_squares, k_squares = summed_over_ranks(
                    q_squares, k_squares, t, boxes_ptr, turns_ptr, missing_ptr, patience, place, ROWS, WORDS, RANK,
                    RANKS,
                )  # fmt: skip
        q_scale = tl.where(in_table, inverse_rms(q_squares, q_width, eps), float("nan"))
        k_scale = tl.where(in_table, inverse_rms(k_squares, k_width, eps), float("nan"))

        q_row = q_ptr + t * (Hq * D)
        normalise_turn_store(
            q_row, D, q_first, q_second, q_passed, qa, qb, qc, q_scale, cos, sin, dtype, False, False, Q_TILE, Q_TILE,
            D, HALF, TURN, REST,
        )  # fmt: skip
        if MORE > 0:
            normalise_turn_store(
                q_row + Q_TILE * D, D, r_first, r_second, r_passed, ra, rb, rc, q_scale, cos, sin, dtype, False, False,
                MORE, MORE_TILE, D, HALF, TURN, REST,
            )  # fmt: skip

        if slots_ptr is not None:
            k_at, v_at, kept = offsets_of(
                slots_ptr, t, page, num_slots, k_page_stride, k_slot_stride, v_page_stride, v_slot_stride
            )
        else:
            k_at, v_at, kept = t * k_slot_stride, t * v_slot_stride, t >= 0
        if kept:
            normalise_turn_store(
                k_ptr + k_at, k_head_stride, k_first, k_second, k_passed, ka, kb, kc, k_scale, cos, sin, dtype, CODED,
                HARDWARE, Hk, K_TILE, D, HALF, TURN, REST,
            )  # fmt: skip
            store_heads(
                v_ptr + v_at, v_head_stride, v_first, v_second, v_passed, CODED, HARDWARE, Hk, K_TILE, D, HALF, TURN,
                REST,
            )  # fmt: skip


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


class Cut(NamedTuple):
    """Tiles of a row: q's heads in two tiles, the first a power of two, so that 48 heads need no 64."""

    first: int
    more: int
    turn: int
    rest: int
    warps: int


def cut(num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int) -> Cut:
    """At most 64 channels a thread, up to 16 warps."""
    first = power_of_two(num_heads + 1) // 2
    turn, rest = power_of_two(rotary_dim // 2), power_of_two(head_dim - rotary_dim)
    heads = first + power_of_two(num_heads - first) + power_of_two(num_kv_heads)
    warps = min(16, power_of_two(triton.cdiv(heads * (2 * turn + rest), 64 * 32)))
    return Cut(first, num_heads - first, turn, rest, warps)


def launch_rows(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    slots: Tensor | None, num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int,
    k_width: int, eps: float, q: Tensor, k: Tensor, v: Tensor, *, mailbox: Mailbox | None = None, place: int = 0,
    counted_kv_heads: int | None = None,
) -> None:  # fmt: skip
    """Launch the kernel; with ``slots`` k and v are caches ``[pages, page, Hk, D]``, else ``[1, T, Hk, D]``.

    mailbox  by which programs sum their squares over ranks, those of the first ``counted_kv_heads``, at ``place``
    """
    tiles, arch = cut(num_heads, num_kv_heads, head_dim, rotary_dim), capability(qkv)
    num_tokens, programs = qkv.shape[0], min(PROGRAMS, qkv.shape[0])
    coded = k.dtype == torch.float8_e4m3fn
    k_entries, v_entries = (cache.view(torch.uint8) if coded else cache for cache in (k, v))
    with on_device_of(qkv):
        qk_norm_rope_kernel[(programs,)](
            qkv, stats, q_weight, k_weight, cos_sin, positions, slots, q, k_entries, v_entries,
            num_tokens, qkv.stride(0), cos_sin.stride(0), cos_sin.shape[0], float(q_width), float(k_width), eps,
            k.shape[1], k.shape[0] * k.shape[1], *k.stride()[:3], *v.stride()[:3],
            Hq=num_heads, Hk=num_kv_heads, D=head_dim, HALF=rotary_dim // 2, Q_TILE=tiles.first, MORE=tiles.more,
            MORE_TILE=power_of_two(tiles.more), K_TILE=power_of_two(num_kv_heads), TURN=tiles.turn, REST=tiles.rest,
            HAS_STATS=stats is not None, CODED=coded, HARDWARE=converts_e4m3(arch),
            COUNTED=num_kv_heads if counted_kv_heads is None else counted_kv_heads,
            num_warps=tiles.warps, STAGES=STAGES if num_tokens > programs else 1, **arguments(mailbox, place),
            **chained(arch, programs * tiles.warps, tokens=num_tokens),
        )  # fmt: skip


def _launch(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
    q: Tensor, k: Tensor, v: Tensor,
) -> None:  # fmt: skip
    launch_rows(
        qkv, stats, q_weight, k_weight, cos_sin, positions, None, num_heads, num_kv_heads, head_dim, rotary_dim,
        q_width, k_width, eps, q, k[None], v[None],
    )  # fmt: skip


def _launch_sums(qkv: Tensor, num_heads: int, head_dim: int, counted_kv_heads: int, stats: Tensor) -> None:
    q_width, k_width = num_heads * head_dim, counted_kv_heads * head_dim
    with on_device_of(qkv):
        qk_sum_squares_kernel[(qkv.shape[0],)](
            qkv, stats, qkv.stride(0), q_width, k_width,
            Q_STEPS=triton.cdiv(q_width, STEP), K_STEPS=triton.cdiv(k_width, STEP), STEP=STEP, num_warps=8,
        )  # fmt: skip


qk_sum_squares, qk_sum_squares_out, qk_norm_rope, qk_norm_rope_out = launched.functions(
    registered("qk_norm_rope", _launch), registered("qk_sum_squares", _launch_sums)
)
