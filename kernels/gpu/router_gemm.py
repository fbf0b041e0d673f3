"""The router's logits in true float32, on a GPU: no factor is rounded, neither to TF32 nor to bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.gpu import router_rows, router_tiles, router_wide, toolkit
from minimax_m2.kernels.gpu.launch import (
    capability,
    let_next_start,
    on_device_of,
    overlaps,
    registered,
    wait_for_predecessor,
)
from minimax_m2.kernels.gpu.parts import add_parts, parts_of
from minimax_m2.kernels.gpu.row_products import MOST_CHANNELS, row_products
from minimax_m2.kernels.schema import router_gemm as router_gemm_schema

# Up to so many tokens, float32 multiply-adds keep up with the weight's bytes.
MULTIPLY_ADDS = 8


class Tiling(NamedTuple):
    """How one product is cut: tokens and experts of a program, channels of a step, parts of the sum over H."""

    tokens: int
    experts: int
    channels: int
    parts: int
    warps: int = 4
    stages: int = 3


def contract(case: Mapping[str, Any]) -> dict[str, Any]:
    """Large batches of bfloat16 run on tensor cores, from 33 tokens everywhere."""
    tensor_core = on_tensor_cores(case["T"], getattr(torch, case["dtype"]))
    return {"tensor_core": "bfloat16" if tensor_core else None}


def on_tensor_cores(num_tokens: int, dtype: torch.dtype) -> bool:
    """Whether x's bfloat16 meets each weight as three bfloat16 words: from where multiply-adds would set the time."""
    return dtype == torch.bfloat16 and num_tokens > MULTIPLY_ADDS


def by_multiply_adds(num_tokens: int, hidden: int) -> bool:
    """Whether whole rows of the weight meet the tokens without tiles."""
    return num_tokens <= MULTIPLY_ADDS and hidden <= MOST_CHANNELS


def by_cuda(
    num_tokens: int, num_experts: int, hidden: int, dtype: torch.dtype, *, capability: int, compiler: str | None,
    aligned: bool, copied: bool,
) -> ModuleType | None:  # fmt: skip
    """The kernel of CUDA C++ that makes these logits: warpgroups, tensor cores, multiply-adds, else none.

    aligned, copied: whether rows begin where threads read, and where the copy engine does.
    """
    sizes = (num_tokens, num_experts, hidden, dtype)
    if router_wide.available(capability, compiler) and router_wide.fits(*sizes, aligned=copied):
        return router_wide
    if not router_rows.available(capability, compiler):
        return None
    return next((unit for unit in (router_tiles, router_rows) if unit.fits(*sizes, aligned=aligned)), None)


def tiling(num_tokens: int, num_experts: int, hidden: int) -> Tiling:
    """Cut H into as many parts as fill the machine; a sum has the same order whatever the tokens beside it hold."""
    tokens = 16 if num_tokens <= 16 else 32 if num_tokens <= 64 else 64 if num_tokens <= 256 else 128
    experts, channels = 64, 64
    if 32 < num_tokens <= 64:
        # Half as many sums to add as there would be programs for: 6.6 beside 7.4 us at 64 tokens.
        return Tiling(tokens, experts, channels, max(1, min(16, triton.cdiv(hidden, channels) // 3)))
    tiles = triton.cdiv(num_tokens, tokens) * triton.cdiv(num_experts, experts)
    steps = triton.cdiv(hidden, channels)
    return Tiling(tokens, experts, channels, parts_of(tiles, steps))


@triton.jit
def router_gemm_kernel(
    x_ptr, weight_ptr, part_ptr, x_stride, weight_stride, T, E, H, length,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr, SPLIT: tl.constexpr,
    EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    """One part of the sum for a tile of logits. SPLIT cuts a weight into three bfloat16 that add up to it exactly."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.program_id(1) * EXPERTS + tl.arange(0, EXPERTS)
    part = tl.program_id(2)
    wait_for_predecessor(EARLY)
    let_next_start(EARLY and FOLLOWED)
    x_rows = x_ptr + token.to(tl.int64)[None, :] * x_stride
    weight_rows = weight_ptr + expert.to(tl.int64)[:, None] * weight_stride
    logits = tl.zeros((EXPERTS, TOKENS), tl.float32)
    for step in range(STEPS):
        within = step * CHANNELS + tl.arange(0, CHANNELS)
        h = part * length + within
        inside = (within < length) & (h < H)
        w = tl.load(weight_rows + h[None, :], mask=(expert < E)[:, None] & inside[None, :], other=0.0)
        x = tl.load(x_rows + h[:, None], mask=(token < T)[None, :] & inside[:, None], other=0.0)
        if SPLIT:
            high = w.to(tl.bfloat16)
            rest = w - high.to(tl.float32)
            middle = rest.to(tl.bfloat16)
            low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
            # A fresh sum each step: a tensor core cuts it towards zero, the more the longer it grows.
            product = tl.dot(middle, x, tl.dot(low, x))
            logits += tl.dot(high, x, product)
        else:
            logits += tl.dot(w, x.to(tl.float32), input_precision="ieee")
    place = (part.to(tl.int64) * T + token[None, :]) * E + expert[:, None]
    tl.store(part_ptr + place, logits, mask=(token < T)[None, :] & (expert < E)[:, None])


def product(x: Tensor, weight: Tensor, bias: Tensor | None, logits: Tensor, *, followed: bool = False) -> None:
    """Launch the product; ``followed``: the next launch waits for it, so it may begin early."""
    num_tokens, num_experts, hidden = *logits.shape, x.shape[1]
    arch = capability(x)
    with on_device_of(x):
        unit = by_cuda(
            num_tokens, num_experts, hidden, x.dtype, capability=arch, compiler=toolkit.compiler(),
            aligned=x.is_cuda and router_rows.aligned(x, weight),
            copied=x.is_cuda and router_wide.aligned(x, weight, logits),
        )  # fmt: skip
        if unit is not None:
            unit.launch(x, weight, bias, logits, arch)
            return
        if by_multiply_adds(num_tokens, hidden):
            row_products(x, weight, logits, capability=arch, bias=bias, followed=followed)
            return
        cut = tiling(num_tokens, num_experts, hidden)
        steps = triton.cdiv(triton.cdiv(hidden, cut.channels), cut.parts)
        whole = cut.parts == 1 and bias is None
        parts = logits[None] if whole else torch.empty((cut.parts, *logits.shape), dtype=torch.float32, device=x.device)
        grid = (triton.cdiv(num_tokens, cut.tokens), triton.cdiv(num_experts, cut.experts), cut.parts)
        overlap = overlaps(arch)
        router_gemm_kernel[grid](
            x, weight, parts, x.stride(0), weight.stride(0), num_tokens, num_experts, hidden, steps * cut.channels,
            TOKENS=cut.tokens, EXPERTS=cut.experts, CHANNELS=cut.channels, STEPS=steps,
            SPLIT=on_tensor_cores(num_tokens, x.dtype), EARLY=overlap, FOLLOWED=followed or not whole,
            num_warps=cut.warps, num_stages=cut.stages, launch_pdl=overlap,
        )  # fmt: skip
        if not whole:
            add_parts(parts, bias, logits, arch)


_call = registered("router_gemm", product)


def router_gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the hidden states by the router's weight: ``float32(x) @ weight^T (+ bias)``.

    x       [T, H] bfloat16, float16 or float32, row stride free
    weight  [E, H] float32, row stride free; bias [E] float32 or None
    returns [T, E] float32

    float32 multiply-adds; above 8 bfloat16 tokens tensor cores, each weight as three bfloat16 words whose sum it is,
    left every 64 products. The sum over H is cut into parts that are added in one order.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    router_gemm_schema.check(x, weight, bias)

    logits = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)

    if x.shape[0] > 0:
        _call(x, weight, bias, logits)
    return logits


def router_gemm_out(x: Tensor, weight: Tensor, bias: Tensor | None, logits: Tensor) -> None:
    """Do what ``router_gemm`` does, into ``logits``, contiguous ``[T, E]`` float32."""
    router_gemm_schema.check(x, weight, bias)
    schema.expect_shape("logits", logits, (x.shape[0], weight.shape[0]), "[T, E]")
    schema.expect_dtype("logits", logits, (torch.float32,))
    schema.expect_contiguous("logits", logits)
    schema.expect_device("logits", logits, x.device)

    if x.shape[0] > 0:
        _call(x, weight, bias, logits)
