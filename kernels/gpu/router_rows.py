"""Launches of ``router_rows.cu``: logits of a few bfloat16 tokens in float32 multiply-adds, where nvcc makes it."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from minimax_m2.kernels.gpu import toolkit
from minimax_m2.kernels.launched import power_of_two

# Below, whole rows by Triton begin the choice of experts earlier (3.8 beside 4.2 us at one token); above, tensor cores
# are ahead.
FEWEST_TOKENS, MOST_TOKENS = 3, 32
# Tokens that a program has in flight.
AT_ONCE = 8
# Steps of 1024 channels by hidden size: what the source is compiled for.
STEPS = {1024: 1, 3072: 3}


def available(capability: int, compiler: str | None) -> bool:
    """Whether the kernel exists here."""
    return capability in toolkit.EARLY and compiler is not None


def fits(num_tokens: int, num_experts: int, hidden: int, dtype: torch.dtype, *, aligned: bool) -> bool:
    """Whether these logits can be made: few bfloat16 tokens, pairs of experts, rows that are read 16 bytes at once."""
    return (
        FEWEST_TOKENS <= num_tokens <= MOST_TOKENS
        and num_experts % 2 == 0
        and hidden in STEPS
        and dtype == torch.bfloat16
        and aligned
    )


def aligned(x: Tensor, weight: Tensor) -> bool:
    """Whether rows begin where a thread's loads may: 8 bytes of x, 16 of the weight."""
    return all(
        row.data_ptr() % bytes_ == 0 and row.stride(0) * row.element_size() % bytes_ == 0
        for row, bytes_ in ((x, 8), (weight, 16))
    )


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, logits: Tensor, capability: int) -> None:
    """Write ``x @ weight^T (+ bias)`` to ``logits [T, E]`` float32."""
    num_tokens, num_experts = logits.shape
    library = toolkit.loaded("router_rows", toolkit.EARLY[capability])
    wrong = library.minimax_m2_router_rows(
        STEPS[x.shape[1]], min(AT_ONCE, power_of_two(num_tokens)), ctypes.c_void_p(x.data_ptr()),
        ctypes.c_longlong(x.stride(0)), ctypes.c_void_p(weight.data_ptr()), ctypes.c_longlong(weight.stride(0)),
        ctypes.c_void_p(None if bias is None else bias.data_ptr()), ctypes.c_void_p(logits.data_ptr()), num_tokens,
        num_experts, ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
    )  # fmt: skip
    toolkit.demand_launched(library, wrong, f"router_rows of {num_tokens} tokens")
