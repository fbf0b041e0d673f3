"""Prompts against the paged cache on sm_90: four warps fetch keys and values, two groups of four multiply them."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Rows of one group of warps; a program has two.
ROWS = gl.constexpr(64)


@gluon.jit
def fetch(
    k_head_ptr, v_head_ptr, table_row, num_pages, last, page_stride, slot_stride, k_ring, v_ring, k_full, k_free,
    v_full, v_free, found, done,
    D: gl.constexpr, KEYS: gl.constexpr, PAGE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy the blocks of keys and values below ``last`` into the rings, as places in them become free.

    found receives whether a page was outside the cache; in its place page 0 was read.
    """
    tile: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (D // 8), D // 8], [4, 1], [1, 0])
    lane: gl.constexpr = gl.SliceLayout(1, tile)
    key, channel = gl.arange(0, KEYS, layout=lane), gl.arange(0, D, layout=gl.SliceLayout(0, tile))
    # One key a thread: what lane would keep for all its threads alike.
    single: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    own_key = gl.arange(0, KEYS, layout=single)
    broken = gl.zeros((KEYS,), gl.int32, layout=single)
    blocks = gl.cdiv(last, KEYS)
    page = gl.load(table_row + key // PAGE, mask=key < last, other=0)
    for block in range(blocks):
        stage, lap = block % STAGES, block // STAGES
        at = block * KEYS + key
        # The next block's pages are on their way while this one's keys are.
        after = gl.load(table_row + (at + KEYS) // PAGE, mask=at + KEYS < last, other=0)
        own = gl.load(table_row + (block * KEYS + own_key) // PAGE, mask=block * KEYS + own_key < last, other=0)
        broken |= ((own < 0) | (own >= num_pages)).to(gl.int32)
        page = gl.where((page < 0) | (page >= num_pages), 0, page)
        mbarrier.wait(k_free.index(stage), (lap & 1) ^ 1)
        place = (page.to(gl.int64) * page_stride + at % PAGE * slot_stride)[:, None] + channel[None, :]
        async_copy.async_copy_global_to_shared(k_ring.index(stage), k_head_ptr + place, mask=(at < last)[:, None])
        async_copy.mbarrier_arrive(k_full.index(stage), increment_count=False)
        mbarrier.wait(v_free.index(stage), (lap & 1) ^ 1)
        async_copy.async_copy_global_to_shared(v_ring.index(stage), v_head_ptr + place, mask=(at < last)[:, None])
        async_copy.mbarrier_arrive(v_full.index(stage), increment_count=False)
        page = after
    async_copy.wait_group(0)
    found.store(broken)
    gl.thread_barrier()
    mbarrier.arrive(done)


@gluon.jit
def weigh(x, total, top, score_factor, limit, seen_by_all, start, KEYS: gl.constexpr, scores: gl.constexpr):
    """Turn a block's products into weights under the rows' new maxima; also what these do to the sums before."""
    if start + KEYS > seen_by_all:
        key = start + gl.arange(0, KEYS, layout=gl.SliceLayout(0, scores))
        x = gl.where(key[None, :] < limit[:, None], x, -float("inf"))
    peak = gl.maximum(top, gl.max(x, 1) * score_factor)
    # A row that has seen no key yet has weights of 0, not of -inf less -inf.
    shift = gl.where(peak == -float("inf"), 0.0, peak)
    p = gl.exp2(x * score_factor - shift[:, None])
    decay = gl.exp2(top - shift)
    return p, decay, total * decay + gl.sum(p, 1), peak


@gluon.jit
def multiply(
    q_ptr, out_ptr, v_scale_ptr, score_factor, start, queries, length, num_tokens, last, first_row, h, Hq, q_stride,
    q_head_stride, wrong, q_rows, k_ring, v_ring, k_full, k_free, v_full, v_free, found, done,
    GROUP: gl.constexpr, D: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attend from 64 rows to every block of the rings and write them."""
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    values: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weights: gl.constexpr = gl.DotOperandLayout(0, values, 2)
    tile: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (D // 8), D // 8], [4, 1], [1, 0])
    dtype: gl.constexpr = q_ptr.dtype.element_ty

    row = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, tile))
    token, head = start + row // GROUP, h * GROUP + row % GROUP
    inside = (row < queries * GROUP) & (token >= 0) & (token < num_tokens)
    channel = gl.arange(0, D, layout=gl.SliceLayout(0, tile))
    q = gl.load(q_ptr + (token * q_stride + head * q_head_stride)[:, None] + channel[None, :], mask=inside[:, None],
                other=0.0)  # fmt: skip
    q_rows.store(q)
    fence_async_shared()
    gl.thread_barrier()

    # The causal edge is aligned to the end: the last query sees every key.
    limit = length - queries + (first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, scores))) // GROUP + 1
    seen_by_all = gl.maximum(length - queries + first_row // GROUP + 1, 0)
    acc = gl.zeros((ROWS, D), gl.float32, layout=values)
    total = gl.zeros((ROWS,), gl.float32, layout=gl.SliceLayout(1, scores))
    top = gl.full((ROWS,), -float("inf"), gl.float32, layout=gl.SliceLayout(1, scores))
    blocks = gl.cdiv(last, KEYS)
    if blocks > 0:
        nothing = gl.zeros((ROWS, KEYS), gl.float32, layout=scores)
        mbarrier.wait(k_full.index(0), 0)
        fence_async_shared()
        ahead = warpgroup_mma(q_rows, k_ring.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
        for block in range(blocks - 1):
            stage, after = block % STAGES, (block + 1) % STAGES
            x = warpgroup_mma_wait(0, deps=[ahead])
            gl.thread_barrier()
            mbarrier.arrive(k_free.index(stage))
            p, decay, total, top = weigh(x, total, top, score_factor, limit, seen_by_all, block * KEYS, KEYS, scores)
            acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, values))[:, None]
            a = gl.convert_layout(p.to(dtype), weights)
            mbarrier.wait(v_full.index(stage), block // STAGES & 1)
            mbarrier.wait(k_full.index(after), (block + 1) // STAGES & 1)
            fence_async_shared()
            sums = warpgroup_mma(a, v_ring.index(stage), acc, is_async=True)
            # The next scores follow these values at once, so that the multiplier does not wait for a weight.
            ahead = warpgroup_mma(q_rows, k_ring.index(after).permute((1, 0)), nothing, use_acc=False, is_async=True)
            acc = warpgroup_mma_wait(1, deps=[sums])
            gl.thread_barrier()
            mbarrier.arrive(v_free.index(stage))
        block = blocks - 1
        x = warpgroup_mma_wait(0, deps=[ahead])
        p, decay, total, top = weigh(x, total, top, score_factor, limit, seen_by_all, block * KEYS, KEYS, scores)
        acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, values))[:, None]
        a = gl.convert_layout(p.to(dtype), weights)
        mbarrier.wait(v_full.index(block % STAGES), block // STAGES & 1)
        fence_async_shared()
        sums = warpgroup_mma(a, v_ring.index(block % STAGES), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[sums])

    mbarrier.wait(done, 0)
    broken = gl.max(found.load(gl.BlockedLayout([1], [32], [4], [0])), 0)
    scale = 1.0
    if v_scale_ptr is not None:
        scale = gl.load(v_scale_ptr).to(gl.float32)
    factor = gl.where(total == 0.0, 0.0, scale / total)
    factor = gl.where(wrong | (broken > 0), float("nan"), factor)
    y = acc * gl.convert_layout(factor, gl.SliceLayout(1, values))[:, None]
    y = gl.convert_layout(y.to(dtype), tile)
    gl.store(out_ptr + ((token.to(gl.int64) * Hq + head) * D)[:, None] + channel[None, :], y, mask=inside[:, None])


@gluon.jit
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, starts_ptr, v_scale_ptr, out_ptr, score_factor, num_tokens,
    num_sequences, tiles, num_pages, capacity, q_stride, q_head_stride, page_stride, slot_stride, head_stride,
    table_stride, Hk,
    GROUP: gl.constexpr, D: gl.constexpr, KEYS: gl.constexpr, PAGE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One tile of 128 rows, head within query, of one sequence under one key/value head; see ``attention_kernel``."""
    number = gl.program_id(0)
    h, number = number % Hk, number // Hk
    # The last tiles see the most keys and come first.
    b, tile = number % num_sequences, tiles - 1 - number // num_sequences
    start, end = gl.load(starts_ptr + b).to(gl.int64), gl.load(starts_ptr + b + 1).to(gl.int64)
    length = gl.load(lengths_ptr + b).to(gl.int64)
    wrong = (length < 0) | (length > capacity) | (start < 0) | (end > num_tokens)
    length = gl.minimum(gl.maximum(length, 0), capacity).to(gl.int32)
    queries = gl.minimum(gl.maximum(end - start, 0), num_tokens).to(gl.int32)
    first_row = tile * (2 * ROWS)
    if first_row < queries * GROUP:
        last_query = gl.minimum(queries, (first_row + 2 * ROWS - 1) // GROUP + 1) - 1
        last = gl.maximum(length - queries + last_query + 1, 0)
        shared: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, D], k_ptr.dtype.element_ty)
        plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
        k_ring = gl.allocate_shared_memory(k_ptr.dtype.element_ty, [STAGES, KEYS, D], shared)
        v_ring = gl.allocate_shared_memory(k_ptr.dtype.element_ty, [STAGES, KEYS, D], shared)
        q_rows = gl.allocate_shared_memory(q_ptr.dtype.element_ty, [2, ROWS, D], shared)
        found = gl.allocate_shared_memory(gl.int32, [KEYS], plain)
        k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        for stage in gl.static_range(STAGES):
            # Each of the 128 fetching threads arrives when its copies have; each group frees a place once.
            mbarrier.init(k_full.index(stage), count=128)
            mbarrier.init(v_full.index(stage), count=128)
            mbarrier.init(k_free.index(stage), count=2)
            mbarrier.init(v_free.index(stage), count=2)
        mbarrier.init(done, count=1)
        fence_async_shared()
        gl.thread_barrier()

        k_head_ptr, v_head_ptr = k_ptr + h.to(gl.int64) * head_stride, v_ptr + h.to(gl.int64) * head_stride
        table_row = table_ptr + b.to(gl.int64) * table_stride
        Hq = Hk * GROUP
        gl.warp_specialize(
            [
                (multiply, (
                    q_ptr, out_ptr, v_scale_ptr, score_factor, start, queries, length, num_tokens, last, first_row, h,
                    Hq, q_stride, q_head_stride, wrong, q_rows.index(0), k_ring, v_ring, k_full, k_free, v_full,
                    v_free, found, done, GROUP, D, KEYS, STAGES,
                )),
                (multiply, (
                    q_ptr, out_ptr, v_scale_ptr, score_factor, start, queries, length, num_tokens, last,
                    first_row + ROWS, h, Hq, q_stride, q_head_stride, wrong, q_rows.index(1), k_ring, v_ring, k_full,
                    k_free, v_full, v_free, found, done, GROUP, D, KEYS, STAGES,
                )),
                (fetch, (
                    k_head_ptr, v_head_ptr, table_row, num_pages, last, page_stride, slot_stride, k_ring, v_ring,
                    k_full, k_free, v_full, v_free, found, done, D, KEYS, PAGE, STAGES,
                )),
            ],
            [4, 4], [200, 104],
        )  # fmt: skip
