"""Tiles of paged attention: rows of queries and heads against blocks of keys, and the sum of parts of a row."""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.gpu.exponential import exp
from minimax_m2.kernels.gpu.launch import let_next_start, take_turn, wait_for_predecessor
from minimax_m2.kernels.gpu.scaled_tile import factor


@triton.jit
def power(x, EXACT: tl.constexpr):
    """e^x below 1 ulp, or 2^x by the hardware."""
    if EXACT:
        y = exp(x)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def cached(at, channel, ok, dtype: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr, CODED: tl.constexpr,
           HARDWARE: tl.constexpr):  # fmt: skip
    """``[KEYS, channels]`` of a cache in ``dtype``, 0 where there is none; e4m3 codes widen without error."""
    place = at[:, None] + channel[None, :]
    if MASKED and channel.shape[0] != D:
        x = tl.load(place, mask=ok[:, None] & (channel < D)[None, :], other=0)
    elif MASKED:
        x = tl.load(place, mask=ok[:, None], other=0)
    elif channel.shape[0] != D:
        x = tl.load(place, mask=(channel < D)[None, :], other=0)
    else:
        x = tl.load(place)
    if CODED:
        y = factor(x, HARDWARE).to(dtype)
    else:
        y = x
    return y


@triton.jit
def add_keys(
    acc, total, top, broken, q, limit, start, last, k_head_ptr, v_head_ptr, table_row, num_pages, score_factor,
    k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, channel,
    KEYS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, ALIKE: tl.constexpr, MASKED: tl.constexpr,
    CODED: tl.constexpr, HARDWARE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Take a block of keys into the rows' sums; MASKED: some rows see only a part of it.

    ALIKE: both caches have the same strides. broken remembers a page outside the cache; in its place page 0 is read.
    """
    key = start + tl.arange(0, KEYS)
    ok = key < last
    if MASKED:
        page = tl.load(table_row + key // PAGE, mask=ok, other=0).to(tl.int64)
    else:
        page = tl.load(table_row + key // PAGE).to(tl.int64)
    outside = (page < 0) | (page >= num_pages)
    broken |= outside.to(tl.int32)
    page, slot = tl.where(outside, 0, page), key % PAGE
    k = cached(
        k_head_ptr + page * k_page_stride + slot * k_slot_stride, channel, ok, q.dtype, D, MASKED, CODED, HARDWARE
    )
    x = tl.dot(q, tl.trans(k), input_precision="ieee") * score_factor
    if MASKED:
        x = tl.where(key[None, :] < limit[:, None], x, -float("inf"))
    peak = tl.maximum(top, tl.max(x, 1))
    shift = peak
    if MASKED:
        # A row that has seen no key yet has weights of 0, not of -inf less -inf.
        shift = tl.where(peak == -float("inf"), 0.0, peak)
    p, decay = power(x - shift[:, None], EXACT), power(top - shift, EXACT)
    total = total * decay + tl.sum(p, 1)
    v = cached(
        v_head_ptr + page * v_page_stride + slot * v_slot_stride, channel, ok, q.dtype, D, MASKED, CODED, HARDWARE
    )
    acc = tl.dot(p.to(q.dtype), v, acc * decay[:, None], input_precision="ieee")
    return acc, total, peak, broken


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, starts_ptr, k_scale_ptr, v_scale_ptr, out_ptr, part_ptr, stats_ptr,
    score_factor, num_tokens, num_sequences, tiles, splits, num_pages, capacity,
    q_stride, q_head_stride, k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    table_stride, Hk,
    GROUP: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PAGE: tl.constexpr, ALIKE: tl.constexpr, CODED: tl.constexpr, HARDWARE: tl.constexpr, EXACT: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One split of the keys of one tile of rows: of ``n * GROUP`` rows, head within query, under one key/value head.

    One more sequence than there are writes 0 to the tokens of none. Without parts there is one split, written to out.
    """
    wait_for_predecessor(EARLY)
    number = tl.program_id(0)
    h, number = number % Hk, number // Hk
    split, number = number % splits, number // splits
    groups = num_sequences + (1 if part_ptr is None else 0)
    # The last tiles see the most keys and come first.
    b, tile = number % groups, tiles - 1 - number // groups
    channel = tl.arange(0, CHANNELS)
    row = tl.arange(0, ROWS)

    if b == num_sequences:
        before = tl.minimum(tl.maximum(tl.load(starts_ptr).to(tl.int64), 0), num_tokens)
        behind = tl.minimum(tl.maximum(tl.load(starts_ptr + num_sequences).to(tl.int64), before), num_tokens)
        zeros = tl.zeros((ROWS, CHANNELS), tl.float32)
        rows = (num_tokens - (behind - before)) * GROUP
        for first in range(tile * ROWS, rows, tiles * ROWS):
            at = (first + row) // GROUP
            token = tl.where(at < before, at, at - before + behind)
            write(out_ptr, token, h * GROUP + (first + row) % GROUP, first + row < rows, channel, zeros, Hk * GROUP, D)
    else:
        start, end = tl.load(starts_ptr + b).to(tl.int64), tl.load(starts_ptr + b + 1).to(tl.int64)
        length = tl.load(lengths_ptr + b).to(tl.int64)
        wrong = (length < 0) | (length > capacity) | (start < 0) | (end > num_tokens)
        length = tl.minimum(tl.maximum(length, 0), capacity).to(tl.int32)
        queries = tl.minimum(tl.maximum(end - start, 0), num_tokens).to(tl.int32)
        if tile * ROWS < queries * GROUP:
            query, head = (tile * ROWS + row) // GROUP, h * GROUP + (tile * ROWS + row) % GROUP
            token = start + query
            inside = (query < queries) & (token >= 0) & (token < num_tokens)
            q = tl.load(
                q_ptr + (token * q_stride + head * q_head_stride)[:, None] + channel[None, :],
                mask=inside[:, None] & (channel < D)[None, :], other=0,
            )  # fmt: skip
            # The causal edge is aligned to the end: the last query sees every key.
            limit = length - queries + query + 1
            last_query = tl.minimum(queries, (tile * ROWS + ROWS - 1) // GROUP + 1) - 1
            last = tl.maximum(length - queries + last_query + 1, 0)
            seen_by_all = tl.maximum(length - queries + tile * ROWS // GROUP + 1, 0)
            blocks = tl.cdiv(tl.cdiv(last, KEYS), splits)
            low = tl.minimum(split * blocks * KEYS, last)
            high = tl.minimum(low + blocks * KEYS, last)
            # Few rows wait for memory, not for a mask: one loop serves them.
            whole = low
            if ROWS > 16:
                whole = low + tl.maximum(tl.minimum(seen_by_all, high) - low, 0) // KEYS * KEYS

            if k_scale_ptr is not None:
                score_factor = (score_factor * tl.load(k_scale_ptr)).to(tl.float32)
            acc = tl.zeros((ROWS, CHANNELS), tl.float32)
            total = tl.zeros((ROWS,), tl.float32)
            top = tl.full((ROWS,), -float("inf"), tl.float32)
            broken = tl.zeros((KEYS,), tl.int32)
            k_head_ptr, v_head_ptr = k_ptr + h.to(tl.int64) * k_head_stride, v_ptr + h.to(tl.int64) * v_head_stride
            table_row = table_ptr + b.to(tl.int64) * table_stride
            if ROWS > 16:
                for at in range(low, whole, KEYS):
                    acc, total, top, broken = add_keys(
                        acc, total, top, broken, q, limit, at, high, k_head_ptr, v_head_ptr, table_row, num_pages,
                        score_factor, k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, channel,
                        KEYS, D, PAGE, ALIKE, False, CODED, HARDWARE, EXACT,
                    )  # fmt: skip
            for at in range(whole, high, KEYS):
                acc, total, top, broken = add_keys(
                    acc, total, top, broken, q, limit, at, high, k_head_ptr, v_head_ptr, table_row, num_pages,
                    score_factor, k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, channel,
                    KEYS, D, PAGE, ALIKE, True, CODED, HARDWARE, EXACT,
                )  # fmt: skip
            let_next_start(EARLY)
            spoilt = wrong | (tl.max(broken, 0) > 0)
            total = tl.where(spoilt, float("nan"), total)
            if part_ptr is None:
                y = acc * share(total, v_scale_ptr)[:, None]
                write(out_ptr, token, head, inside, channel, y, Hk * GROUP, D)
            else:
                place = split * num_tokens + token
                keep(part_ptr, stats_ptr, place, head, inside, channel, acc, top, total, Hk * GROUP, D)
        if tile == 0:
            # Queries beyond the promised maximum, which no tile holds.
            nothing = tl.full((ROWS, CHANNELS), float("nan"), tl.float32)
            none = tl.full((ROWS,), float("nan"), tl.float32)
            for first in range(tiles * ROWS, queries * GROUP, ROWS):
                token, head = start + (first + row) // GROUP, h * GROUP + (first + row) % GROUP
                inside = (first + row < queries * GROUP) & (token >= 0) & (token < num_tokens)
                if part_ptr is None:
                    write(out_ptr, token, head, inside, channel, nothing, Hk * GROUP, D)
                else:
                    place = split * num_tokens + token
                    keep(part_ptr, stats_ptr, place, head, inside, channel, nothing, none, none, Hk * GROUP, D)


@triton.jit
def share(total, v_scale_ptr):
    """What a row's sum is multiplied by: the values' scale over the sum of weights, 0 for a row without keys."""
    scale = 1.0
    if v_scale_ptr is not None:
        scale = tl.load(v_scale_ptr).to(tl.float32)
    return tl.where(total == 0.0, 0.0, tl.div_rn(scale, total))


@triton.jit
def write(out_ptr, token, head, inside, channel, y, Hq, D: tl.constexpr):
    """Write rows of the result."""
    at = out_ptr + ((token.to(tl.int64) * Hq + head) * D)[:, None] + channel[None, :]
    tl.store(at, y.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (channel < D)[None, :])


@triton.jit
def keep(part_ptr, stats_ptr, token, head, inside, channel, acc, top, total, Hq, D: tl.constexpr):
    """Keep a part of some rows for the sum: its values, its largest score and its sum of weights."""
    at = token.to(tl.int64) * Hq + head
    # A part without weights adds nothing and is not read.
    used = inside & (total != 0.0)
    tl.store(part_ptr + (at * D)[:, None] + channel[None, :], acc, mask=used[:, None] & (channel < D)[None, :])
    tl.store(stats_ptr + 2 * at, top, mask=inside)
    tl.store(stats_ptr + 2 * at + 1, total, mask=inside)


@triton.jit
def sum_parts_kernel(
    part_ptr, stats_ptr, starts_ptr, v_scale_ptr, out_ptr, num_tokens, num_sequences, splits, Hq,
    D: tl.constexpr, CHANNELS: tl.constexpr, PARTS: tl.constexpr, EXACT: tl.constexpr, EARLY: tl.constexpr,
    FOLLOWED: tl.constexpr,
):  # fmt: skip
    """Sum the parts of one row, always in one order; 0 for a token of no sequence."""
    take_turn(EARLY, FOLLOWED)
    row = tl.program_id(0).to(tl.int64)
    token = row // Hq
    part, channel = tl.arange(0, PARTS), tl.arange(0, CHANNELS)
    owned = (token >= tl.load(starts_ptr).to(tl.int64)) & (token < tl.load(starts_ptr + num_sequences).to(tl.int64))
    at = part.to(tl.int64) * num_tokens * Hq + row
    mine = owned & (part < splits)
    top = tl.load(stats_ptr + 2 * at, mask=mine, other=-float("inf"))
    total = tl.load(stats_ptr + 2 * at + 1, mask=mine, other=0.0)
    used = mine & (total != 0.0)
    values = tl.load(
        part_ptr + (at * D)[:, None] + channel[None, :], mask=used[:, None] & (channel < D)[None, :], other=0.0
    )
    peak = tl.max(tl.where(used, top, -float("inf")), 0)
    weight = tl.where(used, power(top - peak, EXACT), 0.0)
    y = tl.sum(values * weight[:, None], 0) * share(tl.sum(total * weight, 0), v_scale_ptr)
    tl.store(out_ptr + row * D + channel, y.to(out_ptr.dtype.element_ty), mask=channel < D)


@triton.jit
def fill_kernel(
    out_ptr, starts_ptr, num_tokens, num_sequences, max_queries, width, FILLERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write what no tile does: 0 for tokens of no sequence, NaN for queries beyond the promised maximum."""
    b, filler = tl.program_id(0), tl.program_id(1)
    if b == num_sequences:
        before = tl.minimum(tl.maximum(tl.load(starts_ptr).to(tl.int64), 0), num_tokens)
        behind = tl.minimum(tl.maximum(tl.load(starts_ptr + num_sequences).to(tl.int64), before), num_tokens)
        count, value = num_tokens - (behind - before), 0.0
    else:
        before = tl.full((), 0, tl.int64)
        behind = tl.load(starts_ptr + b).to(tl.int64) + max_queries
        count, value = tl.load(starts_ptr + b + 1).to(tl.int64) - behind, float("nan")
    for i in range(filler, count.to(tl.int32), FILLERS):
        token = tl.where(i < before, i, i - before + behind)
        inside = (token >= 0) & (token < num_tokens)
        for first in range(0, width, BLOCK):
            at = first + tl.arange(0, BLOCK)
            filled = tl.full((BLOCK,), value, tl.float32).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + token * width + at, filled, mask=inside & (at < width))
