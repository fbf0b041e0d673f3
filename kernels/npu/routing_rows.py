"""Score, select and weigh the experts of a token, and their packed words: a program many tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.npu.swiglu_rows import sigmoid


@triton.jit
def routing_kernel(
    logits_ptr, bias_ptr, num_valid_ptr, weights_ptr, ids_ptr, rows, stride, E, scale, eps,
    K: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, SOFTMAX: tl.constexpr, RENORMALIZE: tl.constexpr,
):  # fmt: skip
    """Write the K experts of a row, by descending score + bias and rising id; a NaN anywhere chooses none."""
    expert, lane = tl.arange(0, BLOCK), tl.arange(0, LANES)
    inside = expert < E
    bias = tl.zeros((BLOCK,), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + expert, mask=inside, other=0.0)
    for t in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(t, tl.int64)
        logits = tl.load(logits_ptr + at * stride + expert, mask=inside, other=0.0).to(tl.float32)
        if SOFTMAX:
            e = tl.where(inside, tl.exp(logits - tl.max(tl.where(inside, logits, float("-inf")), 0)), 0.0)
            scores = e / tl.sum(e, 0)
        else:
            scores = sigmoid(logits)
        selection = scores + bias
        unordered = tl.sum(tl.where(inside & (selection != selection), 1.0, 0.0), 0) > 0.0
        # Minus infinity is a score that a mask may give: what is taken is remembered apart.
        free = tl.where(inside, 1.0, 0.0)
        chosen = tl.full((LANES,), -1, tl.int32)
        weights = tl.zeros((LANES,), tl.float32)
        for k in range(K):
            best = tl.max(tl.where(free > 0.0, selection, float("-inf")), 0)
            winner = tl.min(tl.where((free > 0.0) & (selection == best), expert, BLOCK), 0)
            hit = expert == winner
            chosen = tl.where(lane == k, winner, chosen)
            weights = tl.where(lane == k, tl.sum(tl.where(hit, scores, 0.0), 0), weights)
            free = tl.where(hit, 0.0, free)
        if RENORMALIZE:
            weights = weights / (tl.sum(weights, 0) + eps)
        weights = weights * scale
        weights = tl.where(unordered, float("nan"), weights)
        chosen = tl.where(unordered, -1, chosen)
        if num_valid_ptr is not None:
            invalid = t >= tl.load(num_valid_ptr)
            weights = tl.where(invalid, 0.0, weights)
            chosen = tl.where(invalid, -1, chosen)
        tl.store(weights_ptr + at * K + lane, weights, mask=lane < K)
        tl.store(ids_ptr + at * K + lane, chosen.to(ids_ptr.dtype.element_ty), mask=lane < K)


@triton.jit
def pack_routing_kernel(weights_ptr, ids_ptr, packed_ptr, n, expert_start, steps, STEP: tl.constexpr):
    for step in range(tl.program_id(0), steps, tl.num_programs(0)):
        at = step * STEP + tl.arange(0, STEP)
        inside = at < n
        ids = tl.load(ids_ptr + at, mask=inside, other=-1)
        bits = tl.load(weights_ptr + at, mask=inside, other=0.0).to(tl.int32, bitcast=True)
        # To nearest even on the bits; a NaN keeps its top payload bit, which rounding up could carry away.
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        half = tl.where(is_nan, (bits >> 16) | 0x40, nearest)
        local = tl.where(ids < expert_start, -1, ids - expert_start).to(tl.int32)
        tl.store(packed_ptr + at, (local << 16) | (half & 0xFFFF), mask=inside)


@triton.jit
def unpack_routing_kernel(packed_ptr, weights_ptr, ids_ptr, n, expert_start, steps, STEP: tl.constexpr):
    for step in range(tl.program_id(0), steps, tl.num_programs(0)):
        at = step * STEP + tl.arange(0, STEP)
        inside = at < n
        packed = tl.load(packed_ptr + at, mask=inside, other=0)
        local = packed >> 16
        tl.store(weights_ptr + at, (packed << 16).to(tl.float32, bitcast=True), mask=inside)
        tl.store(ids_ptr + at, tl.where(local < 0, -1, local + expert_start), mask=inside)
