"""Routing on a GPU: score, select, weigh in one launch, a program a token; and its packed format."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.exponential import exp, sigmoid
from minimax_m2.kernels.gpu.launch import (
    capability,
    chained,
    on_device_of,
    registered,
    take_turn,
)
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.launched import routing as launched

# Words of pack_routing that one program handles.
PACKED = 1024


@triton.jit
def scored(logits, peak, total, SOFTMAX: tl.constexpr):
    """Scores of logits, float32; of softmax, peak is the row's largest logit and total the sum of its powers."""
    if SOFTMAX:
        scores = tl.div_rn(exp(logits - peak), total)
    else:
        scores = sigmoid(logits)
    return scores


@triton.jit
def select_and_weigh(
    row, bias, inside, invalid, weights_ptr, ids_ptr, scale, eps, K: tl.constexpr, LANES: tl.constexpr,
    BLOCK: tl.constexpr, SOFTMAX: tl.constexpr, RENORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Write the K experts of a row, by descending score + bias and rising id; a NaN anywhere chooses none."""
    expert = tl.arange(0, BLOCK)
    logits = tl.load(row + expert, mask=inside, other=0.0).to(tl.float32)
    peak, total = 0.0, 1.0
    if SOFTMAX:
        peak = tl.max(tl.where(inside, logits, -float("inf")), 0)
        total = tl.sum(tl.where(inside, exp(logits - peak), 0.0), 0)
    selection = scored(logits, peak, total, SOFTMAX)
    if HAS_BIAS:
        selection += bias
    unordered = tl.sum(tl.where(inside & (selection != selection), 1, 0), 0) > 0
    # Integers in the order of selection: their maximum over a warp is one instruction. 0.0 makes -0 and 0
    # equal; -2^31 is below every number.
    bits = (selection + 0.0).to(tl.int32, bitcast=True)
    taken: tl.constexpr = -(1 << 31)
    key = tl.where(inside, bits ^ ((bits >> 31) & 0x7FFFFFFF), taken)
    lane = tl.arange(0, LANES)
    chosen = tl.zeros((LANES,), tl.int32)
    for k in range(K):
        best = tl.max(key, 0)
        winner = tl.min(tl.where(key == best, expert, BLOCK), 0)
        chosen = tl.where(lane == k, winner, chosen)
        key = tl.where(expert == winner, taken, key)
    # Scored once more, from the cache: to carry K scores out of a warp takes longer.
    picked = tl.load(row + chosen, mask=lane < K, other=0.0).to(tl.float32)
    weights = tl.where(lane < K, scored(picked, peak, total, SOFTMAX), 0.0)
    if RENORMALIZE:
        # As a tree: one after the other, equal scores would round the same way K times.
        weights = tl.div_rn(weights, tl.sum(weights, 0) + eps)
    weights = weights * scale
    weights = tl.where(unordered, float("nan"), weights)
    weights = tl.where(invalid, 0.0, weights)
    chosen = tl.where(unordered | invalid, -1, chosen)
    tl.store(weights_ptr + lane, weights, mask=lane < K)
    tl.store(ids_ptr + lane, chosen.to(ids_ptr.dtype.element_ty), mask=lane < K)


@triton.jit
def routing_kernel(
    logits_ptr, bias_ptr, num_valid_ptr, weights_ptr, ids_ptr, stride, E, scale, eps,
    K: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, SOFTMAX: tl.constexpr, RENORMALIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    inside = expert < E
    bias = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert, mask=inside, other=0.0)
    take_turn(EARLY, FOLLOWED)
    invalid = t < 0
    if HAS_VALID:
        invalid = t >= tl.load(num_valid_ptr)
    select_and_weigh(
        logits_ptr + t * stride, bias, inside, invalid, weights_ptr + t * K, ids_ptr + t * K, scale, eps,
        K, LANES, BLOCK, SOFTMAX, RENORMALIZE, HAS_BIAS,
    )  # fmt: skip


@triton.jit
def pack_routing_kernel(weights_ptr, ids_ptr, packed_ptr, n, expert_start, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    ids = tl.load(ids_ptr + at, mask=inside, other=-1).to(tl.int64)
    bits = tl.load(weights_ptr + at, mask=inside, other=0.0).to(tl.int32, bitcast=True)
    # To nearest even on the bits; a NaN keeps its top payload bit, which rounding up could carry away.
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    half = tl.where(is_nan, (bits >> 16) | 0x40, nearest)
    local = tl.where(ids < expert_start, -1, ids - expert_start).to(tl.int32)
    tl.store(packed_ptr + at, (local << 16) | (half & 0xFFFF), mask=inside)


@triton.jit
def unpack_routing_kernel(packed_ptr, weights_ptr, ids_ptr, n, expert_start, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    packed = tl.load(packed_ptr + at, mask=inside, other=0)
    local = packed >> 16
    tl.store(weights_ptr + at, (packed << 16).to(tl.float32, bitcast=True), mask=inside)
    tl.store(ids_ptr + at, tl.where(local < 0, -1, local + expert_start), mask=inside)


def choose(
    logits: Tensor, bias: Tensor | None, top_k: int, weights: Tensor, ids: Tensor, renormalize: bool = True,
    softmax: bool = False, scale: float = 1.0, eps: float = 0.0, num_valid: Tensor | None = None,
) -> None:  # fmt: skip
    """Launch the choice among ``logits``; on sm_90 and later it begins while the launch that writes them ends."""
    num_tokens, num_experts = logits.shape
    block, arch = power_of_two(num_experts), capability(logits)
    warps = 1 if block <= 512 else 2
    with on_device_of(logits):
        routing_kernel[(num_tokens,)](
            logits, bias, num_valid, weights, ids, logits.stride(0), num_experts, scale, eps,
            K=top_k, LANES=power_of_two(top_k), BLOCK=block, SOFTMAX=softmax, RENORMALIZE=renormalize,
            HAS_BIAS=bias is not None, HAS_VALID=num_valid is not None, num_warps=warps,
            **chained(arch, num_tokens * warps, tokens=num_tokens),
        )  # fmt: skip


def _launch_pack(weights: Tensor, ids: Tensor, expert_start: int, packed: Tensor) -> None:
    with on_device_of(ids):
        pack_routing_kernel[(triton.cdiv(ids.numel(), PACKED),)](
            weights, ids, packed, ids.numel(), expert_start, BLOCK=PACKED
        )


def _launch_unpack(packed: Tensor, expert_start: int, weights: Tensor, ids: Tensor) -> None:
    with on_device_of(packed):
        unpack_routing_kernel[(triton.cdiv(packed.numel(), PACKED),)](
            packed, weights, ids, packed.numel(), expert_start, BLOCK=PACKED
        )


routing, routing_out, pack_routing, unpack_routing = launched.functions(
    registered("routing", choose),
    registered("pack_routing", _launch_pack),
    registered("unpack_routing", _launch_unpack),
)
