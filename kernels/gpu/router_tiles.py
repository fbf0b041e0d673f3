"""Launches of ``router_tiles.cu``: logits of some bfloat16 tokens on tensor cores, where nvcc makes it."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from minimax_m2.kernels.gpu import toolkit

# Below, multiply-adds keep up with the weight's bytes; above, x is read too often: 8.8 beside 8.5 us at 128 tokens.
FEWEST_TOKENS, MOST_TOKENS = 9, 96
# Experts of a cluster, and the hidden sizes that the source is compiled for.
EXPERTS = 16
HIDDEN = (1024, 3072)


def fits(num_tokens: int, num_experts: int, hidden: int, dtype: torch.dtype, *, aligned: bool) -> bool:
    """Whether these logits can be made: some bfloat16 tokens, whole clusters, rows that are read 16 bytes at once."""
    return (
        FEWEST_TOKENS <= num_tokens <= MOST_TOKENS
        and num_experts % EXPERTS == 0
        and hidden in HIDDEN
        and dtype == torch.bfloat16
        and aligned
    )


def tile(num_tokens: int) -> int:
    """Tokens of a program."""
    return 16 if num_tokens <= 16 else 32


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, logits: Tensor, capability: int) -> None:
    """Write ``x @ weight^T (+ bias)`` to ``logits [T, E]`` float32."""
    num_tokens, num_experts = logits.shape
    library = toolkit.loaded("router_tiles", toolkit.EARLY[capability])
    wrong = library.minimax_m2_router_tiles(
        x.shape[1], tile(num_tokens), ctypes.c_void_p(x.data_ptr()), ctypes.c_longlong(x.stride(0)),
        ctypes.c_void_p(weight.data_ptr()), ctypes.c_longlong(weight.stride(0)),
        ctypes.c_void_p(None if bias is None else bias.data_ptr()), ctypes.c_void_p(logits.data_ptr()), num_tokens,
        num_experts, ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
    )  # fmt: skip
    toolkit.demand_launched(library, wrong, f"router_tiles of {num_tokens} tokens")
