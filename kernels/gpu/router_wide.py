"""Launches of ``router_wide.cu``: logits of many bfloat16 tokens on warpgroup products, where nvcc makes it."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.kernels.gpu import toolkit

# Experts of a program, channels of a step.
EXPERTS, STEP = 128, 64
# Below, Triton's tiles are as fast; from so many, wide tiles of tokens read the weight less often.
FEWEST_TOKENS, MANY_TOKENS = 129, 897
NARROW, WIDE = 64, 128
# Clusters of so many programs that an H200 holds at once: its 132 multiprocessors lie in groups of unlike size.
CLUSTERS = {1: 132, 2: 66, 3: 43, 4: 30, 5: 23, 6: 20, 8: 15}


class Cut(NamedTuple):
    """Tokens of a program, and programs that share the channels."""

    tokens: int
    slices: int


def available(capability: int, compiler: str | None) -> bool:
    """Whether the kernel exists here: sm_90 alone has its products."""
    return capability == 90 and compiler is not None


def fits(num_tokens: int, num_experts: int, hidden: int, dtype: torch.dtype, *, aligned: bool) -> bool:
    """Whether these logits can be made: many bfloat16 tokens, whole steps, rows that are copied 16 bytes at once."""
    return (
        num_tokens >= FEWEST_TOKENS
        and num_experts % 4 == 0
        and hidden % STEP == 0
        and dtype == torch.bfloat16
        and aligned
    )


def aligned(x: Tensor, weight: Tensor, logits: Tensor) -> bool:
    """Whether rows begin at multiples of 16 bytes."""
    return all(row.data_ptr() % 16 == 0 and row.stride(0) * row.element_size() % 16 == 0 for row in (x, weight, logits))


def cut(num_tokens: int, num_experts: int, hidden: int) -> Cut:
    """As many programs as a large GPU holds at once; it hangs on shapes alone, so a sum has one order."""
    tokens = WIDE if num_tokens >= MANY_TOKENS else NARROW
    tiles, steps = -(-num_tokens // tokens) * -(-num_experts // EXPERTS), hidden // STEP
    held = [slices for slices, clusters in CLUSTERS.items() if tiles <= clusters and slices <= steps]
    return Cut(tokens, max(held, default=1))


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, logits: Tensor, capability: int) -> None:
    """Write ``x @ weight^T (+ bias)`` to ``logits [T, E]`` float32."""
    num_tokens, num_experts = logits.shape
    library = toolkit.loaded("router_wide", toolkit.EARLY[capability])
    wrong = library.minimax_m2_router_wide(
        *cut(num_tokens, num_experts, x.shape[1]), ctypes.c_void_p(x.data_ptr()), ctypes.c_longlong(x.stride(0)),
        ctypes.c_void_p(weight.data_ptr()), ctypes.c_longlong(weight.stride(0)),
        ctypes.c_void_p(None if bias is None else bias.data_ptr()), ctypes.c_void_p(logits.data_ptr()), num_tokens,
        num_experts, x.shape[1], ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
    )  # fmt: skip
    toolkit.demand_launched(library, wrong, f"router_wide of {num_tokens} tokens")
