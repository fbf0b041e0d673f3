"""Rotary position embedding of the first R channels of a head, in NeoX halves."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract, rounded


def rope(
    q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int, contract: Contract = EXACT
) -> tuple[Tensor, Tensor]:
    """Rotate the pairs ``(j, j + R/2)``, j < R/2, of every head; channels from R on pass through.

        y[j] = x[j] * cos - x[j + R/2] * sin;  y[j + R/2] = x[j + R/2] * cos + x[j] * sin

    q          [T, Hq, D]
    k          [T, Hk, D]
    cos_sin    [P, R], R/2 cosines then R/2 sines, row stride free
    positions  [T] int32 or int64, in 0..P-1
    returns    q, k, shapes and dtypes kept

    Contract:
        cos_sin   the table. Model dtype: vLLM's cache, transformers; float32: SGLang CUDA (SGLANG_ROPE_CACHE_FP32).
        products  each of the two products. Model dtype: vLLM csrc/pos_encoding_kernels.cu computes in scalar_t, as
                  do transformers and aiter; float32 or None: FlashInfer, SGLang JIT, the NPU op.
        out       the rotated channels.

    Raises ValueError for an odd or too large ``rotary_dim``, IndexError for a position outside the table.
    """
    rows = rotation_rows(cos_sin, positions, rotary_dim=rotary_dim, head_dim=q.shape[-1], contract=contract)
    return tuple(  # type: ignore[return-value]
        torch.cat([rotated(x[..., :rotary_dim], rows, contract=contract), x[..., rotary_dim:]], -1) for x in (q, k)
    )


def rotation_rows(
    cos_sin: Tensor, positions: Tensor, *, rotary_dim: int, head_dim: int, contract: Contract = EXACT
) -> Tensor:
    """Pick each token's row of the table, ``[T, 1, R]``, to be used for all its heads."""
    if rotary_dim % 2 or not 0 <= rotary_dim <= min(head_dim, cos_sin.shape[-1]):
        raise ValueError(
            f"rotary_dim={rotary_dim} is odd or exceeds head_dim={head_dim} or the {cos_sin.shape[-1]} columns of "
            "cos_sin; MiniMax-M2 rotates 64 of 128"
        )
    # index_select, unlike indexing, refuses negative positions instead of wrapping them.
    return rounded(cos_sin, contract.cos_sin).index_select(0, positions)[:, None, :rotary_dim]


def rotated(x: Tensor, rows: Tensor, *, contract: Contract = EXACT) -> Tensor:
    """Rotate ``x [T, heads, R]`` by ``rows [T, 1, R]``."""
    cos, sin = rows.chunk(2, -1)
    first, second = x.chunk(2, -1)
    y = [
        rounded(first * cos, contract.products) - rounded(second * sin, contract.products),
        rounded(second * cos, contract.products) + rounded(first * sin, contract.products),
    ]
    return rounded(torch.cat(y, -1), contract.out).to(x.dtype)


def cos_sin_table(*, num_positions: int, rotary_dim: int, theta: float, contract: Contract = EXACT) -> Tensor:
    """Tabulate cosines and sines of ``p * theta^(-2j/R)``: ``[num_positions, R]`` float64, cos then sin.

    Contract:
        angle    inverse frequencies and angles. float32: every engine read (outer(arange, inv_freq)); at position
                 2e5 such an angle is off by 1e-2 rad, so the exact table and an engine's differ at long context.
        cos_sin  see rope.
    """
    frequencies = rounded(theta ** -(torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim), contract.angle)
    angles = rounded(torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies, contract.angle)
    return rounded(torch.cat([angles.cos(), angles.sin()], -1), contract.cos_sin)
