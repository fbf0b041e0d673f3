"""Attend over a paged cache on a GPU: single tokens, whose keys are dealt to many programs, and prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from minimax_m2.kernels.gpu import attention_rows, toolkit
from minimax_m2.kernels.gpu.attention_prefill import ROWS, prefill_kernel
from minimax_m2.kernels.gpu.attention_tiles import attention_kernel, fill_kernel, sum_parts_kernel
from minimax_m2.kernels.gpu.launch import (
    capability,
    chained,
    converts_e4m3,
    multiprocessors,
    on_device_of,
    registered,
    starts_early,
)
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.schema import attention as attention_schema

# Programs that a multiprocessor should have: keys are split until there are so many.
PROGRAMS = 2
MOST_SPLITS = 64
# Of long sequences a part has at most so many keys, down to so many parts, so that sequences of unlike lengths end
# together: a fifth of the time of 8 x 32768, for 4 % where all are alike.
LONGEST, BALANCED = 4096, 8
# Programs that write the rows of no tile, a sequence; registers that 12 warps of one program may have.
FILLERS, REGISTERS = 16, 168
# Bytes that a block of threads may share where it is not 227 KiB: sm_80, and all that are not listed.
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
LEAST_SHARED_BYTES = 99 << 10


def contract(case: Mapping[str, Any]) -> dict[str, Any]:
    """16-bit weights are cast for the second product, as in FlashAttention; ex2.approx errs by 2 ulp, its argument too.

    The PTX manual bounds ex2.approx.ftz.f32 by a relative error of 2^-22.
    """
    if case["dtype"] == "float32":
        return {"probabilities": None}
    return {"tensor_core": "bfloat16", "exp_ulps": 4.0}


class Plan(NamedTuple):
    """Rows and keys of a tile, parts that the keys are split into, and how a program is compiled."""

    rows: int
    keys: int
    splits: int
    warps: int
    stages: int


def plan(
    *, sequences: int, queries: int, length: int, heads: int, group: int, channels: int, bytes_: int, capability: int,
    multiprocessors: int,
) -> Plan:  # fmt: skip
    """The tiles for ``sequences`` of at most ``queries`` new tokens and ``length`` keys; every size is a maximum."""
    wanted, shared = queries * group, SHARED_BYTES.get(capability, LEAST_SHARED_BYTES)
    if bytes_ == 4:
        rows, keys, warps = 16, 32, 4
    elif wanted <= 64:
        # A block that one program reads at once hides the latency of its table of pages best.
        rows, keys, warps = max(16, power_of_two(wanted)), 128, 4
    else:
        rows, keys, warps = 128, 128, 8
    if rows > 16 and shared < 200 << 10:
        keys = 64
    if rows > 16 and capability < 90:
        # Without warpgroup products a thread would hold more than it has registers for.
        keys = 32
    if channels > 128:
        rows, keys = min(rows, 64), 32
    buffers = (shared - rows * channels * bytes_) // (2 * keys * channels * bytes_)
    stages = 3 if buffers >= (1 if rows == 16 else 2) else 2
    programs = max(1, sequences * heads * triton.cdiv(wanted, rows))
    splits = round(PROGRAMS * multiprocessors / programs)
    if rows == 16 and sequences > 1:
        splits = max(splits, min(triton.cdiv(length, LONGEST), BALANCED))
    splits = max(1, min(splits, triton.cdiv(length, keys), MOST_SPLITS))
    return Plan(rows, keys, splits, warps, stages)


def in_groups_of_warps(
    *, capability: int, dtype: torch.dtype, cache: torch.dtype, head_dim: int, rows: int, strides: tuple[int, ...],
    alike: bool, aligned: bool, scaled: bool, scale: float,
) -> bool:  # fmt: skip
    """Whether prompts take the kernel of sm_90 whose warps divide the work of fetching and multiplying.

    It copies 16 bytes at once, from caches of one layout, and folds a positive scale into its exponentials.
    """
    return (
        capability == 90 and dtype in (torch.bfloat16, torch.float16) and cache == dtype and head_dim in (64, 128)
        and rows >= 256 and alike and aligned and all(stride % 16 == 0 for stride in strides) and not scaled
        and scale > 0
    )  # fmt: skip


def _launch(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor,
    scale: float, max_query_len: int, max_seq_len: int, k_scale: Tensor | None, v_scale: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    num_tokens, Hq, D = q.shape
    num_pages, page, Hk, _ = k_cache.shape
    sequences, channels, arch = seq_lens.shape[0], max(16, power_of_two(D)), capability(q)
    exact = q.dtype == torch.float32
    # What a row of the table can name; a sequence that claims more is spoilt, and so is any where there is no page.
    capacity = min(block_table.shape[1] * page, 2**30) if num_pages else 0
    if in_groups_of_warps(
        capability=arch, dtype=q.dtype, cache=k_cache.dtype, head_dim=D, rows=max_query_len * (Hq // Hk),
        strides=k_cache.stride()[:3], alike=k_cache.stride() == v_cache.stride(),
        aligned=k_cache.data_ptr() % 16 == 0 and v_cache.data_ptr() % 16 == 0, scaled=k_scale is not None, scale=scale,
    ):  # fmt: skip
        row_tiles = triton.cdiv(max_query_len * (Hq // Hk), 2 * ROWS.value)
        with on_device_of(q):
            prefill_kernel[(row_tiles * sequences * Hk,)](
                q, k_cache, v_cache, block_table, seq_lens, query_start, v_scale, out, scale * math.log2(math.e),
                num_tokens, sequences, row_tiles, num_pages, capacity, q.stride(0), q.stride(1), *k_cache.stride()[:3],
                block_table.stride(0), Hk, GROUP=Hq // Hk, D=D, KEYS=128, PAGE=page, STAGES=2, num_warps=4,
                maxnreg=REGISTERS,
            )  # fmt: skip
            fill_kernel[(sequences + 1, FILLERS)](
                out, query_start, num_tokens, sequences, max_query_len, Hq * D, FILLERS=FILLERS, BLOCK=1024, num_warps=4
            )
        return
    if sequences and attention_rows.fits(
        capability=arch, compiler=toolkit.compiler(), rows=max_query_len * (Hq // Hk), head_dim=D, dtype=q.dtype,
        cache=k_cache.dtype, scaled=k_scale is not None,
        aligned=q.is_cuda and attention_rows.readable(q, (k_cache, v_cache)),
    ):  # fmt: skip
        few = attention_rows.cut(sequences * Hk, max_seq_len, attention_rows.held_by(q.device))
        if few is not None:
            with on_device_of(q):
                attention_rows.launch(
                    q, k_cache, v_cache, block_table, seq_lens, query_start, out, few, scale=scale,
                    max_query_len=max_query_len, max_seq_len=max_seq_len, capacity=capacity,
                )  # fmt: skip
            return
    tiles = plan(
        sequences=sequences, queries=max_query_len, length=max_seq_len, heads=Hk, group=Hq // Hk, channels=channels,
        bytes_=q.element_size(), capability=arch, multiprocessors=multiprocessors(q.device),
    )  # fmt: skip
    coded = k_cache.dtype == torch.float8_e4m3fn
    k, v = (cache.view(torch.uint8) if coded else cache for cache in (k_cache, v_cache))
    split = tiles.splits > 1
    part = torch.empty((tiles.splits, num_tokens, Hq, D), dtype=torch.float32, device=q.device) if split else None
    stats = torch.empty((tiles.splits, num_tokens, Hq, 2), dtype=torch.float32, device=q.device) if split else None
    row_tiles = max(1, triton.cdiv(max_query_len * (Hq // Hk), tiles.rows))
    programs = row_tiles * (sequences + (not split)) * tiles.splits * Hk
    with on_device_of(q):
        attention_kernel[(programs,)](
            q, k, v, block_table, seq_lens, query_start, k_scale, v_scale, out, part, stats,
            scale if exact else scale * math.log2(math.e), num_tokens, sequences, row_tiles, tiles.splits, num_pages,
            capacity, q.stride(0), q.stride(1), *k_cache.stride()[:3], *v_cache.stride()[:3], block_table.stride(0), Hk,
            GROUP=Hq // Hk, D=D, CHANNELS=channels, ROWS=tiles.rows, KEYS=tiles.keys, PAGE=page,
            ALIKE=k_cache.stride() == v_cache.stride(), CODED=coded, HARDWARE=converts_e4m3(arch), EXACT=exact,
            num_warps=tiles.warps, num_stages=tiles.stages, **starts_early(arch),
        )  # fmt: skip
        if split:
            sum_parts_kernel[(num_tokens * Hq,)](
                part, stats, query_start, v_scale, out, num_tokens, sequences, tiles.splits, Hq, D=D, CHANNELS=channels,
                PARTS=power_of_two(tiles.splits), EXACT=exact, num_warps=4, **chained(arch, 0, tokens=num_tokens),
            )  # fmt: skip


_call = registered("attention", _launch)


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    *,
    scale: float,
    max_query_len: int,
    max_seq_len: int,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> Tensor:
    """Attend from each sequence's new tokens to its cached keys, the last query to all of them.

    q                 [T, Hq, D] bfloat16, float16 or float32; head h reads key/value head h // (Hq/Hk)
    k_cache, v_cache  [pages, page, Hk, D], dtype of q or float8_e4m3fn, read times k_scale, v_scale (None: 1)
    block_table       [B, max pages] int32 or int64; entries beyond a sequence's length are never used
    seq_lens          [B] int32 or int64, the new tokens included; query_start [B + 1] likewise, rising
    returns           [T, Hq, D], dtype of q; rows without keys and rows outside query_start are 0

    Strides are free but for the last dimension. Scores and sums are float32, the weights too but for the second
    product. Sequences of few rows have their keys split; the parts are summed in one order.

    A sequence gets NaN whose length exceeds its row of the table, that names a page outside the cache, or that lies
    outside q, as do queries beyond ``max_query_len``.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    attention_schema.check(q, k_cache, v_cache, block_table, seq_lens, query_start, k_scale=k_scale, v_scale=v_scale)

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)

    _attend(
        q, k_cache, v_cache, block_table, seq_lens, query_start, out,
        scale, max_query_len, max_seq_len, k_scale, v_scale,
    )  # fmt: skip
    return out


def attention_out(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    out: Tensor,
    *,
    scale: float,
    max_query_len: int,
    max_seq_len: int,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> None:
    """Do what ``attention`` does, into ``out``, contiguous ``[T, Hq, D]``."""
    attention_schema.check(q, k_cache, v_cache, block_table, seq_lens, query_start, k_scale=k_scale, v_scale=v_scale)
    attention_schema.check_output(out, q)

    _attend(
        q, k_cache, v_cache, block_table, seq_lens, query_start, out,
        scale, max_query_len, max_seq_len, k_scale, v_scale,
    )  # fmt: skip


def _attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor,
    out: Tensor, scale: float, max_query_len: int, max_seq_len: int, k_scale: Tensor | float | None,
    v_scale: Tensor | float | None,
) -> None:  # fmt: skip
    k_scale, v_scale = (attention_schema.scale_tensor(scale, q.device) for scale in (k_scale, v_scale))
    if q.shape[0] > 0:
        _call(
            q, k_cache, v_cache, block_table, seq_lens, query_start, scale, max_query_len, max_seq_len,
            k_scale, v_scale, out,
        )  # fmt: skip
