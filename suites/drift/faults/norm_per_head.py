"""Normalises every query head by itself in place of the whole width."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "qk_norm_rope_cache"


def qk_norm_rope_cache(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    *written: Tensor, **sizes: Any,
) -> Tensor:  # fmt: skip
    q = right("qk_norm_rope_cache")(qkv, stats, q_weight, k_weight, cos_sin, positions, *written, **sizes)
    width = sizes["num_heads"] * sizes["head_dim"]
    raw = qkv[:, :width].float().view(q.shape).square()
    return (q.float() * (raw.mean((1, 2), keepdim=True) / raw.mean(2, keepdim=True)).sqrt()).to(q.dtype)
