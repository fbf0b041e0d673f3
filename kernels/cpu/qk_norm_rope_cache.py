"""Normalise and rotate q and k and store k and v in the paged cache, in one pass, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import qk_norm_rope_cache as cache_schema
from minimax_m2.kernels.schema.rope import check_output

extension.load("qk_norm_rope_cache")


def qk_norm_rope_cache(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, *,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
) -> Tensor:  # fmt: skip
    """Compute ``q, k, v = qk_norm_rope(...)`` and write k and v to ``slots`` of the caches.

    Arguments as in qk_norm_rope and kv_cache; k_cache!, v_cache! are written in place and have qkv's dtype or
    float8_e4m3fn; returns q [T, Hq, D], contiguous, dtype of qkv

    Computed in float32 and rounded once; an e4m3 entry is k in qkv's dtype, rounded again, saturating at 448.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above, and ValueError for a
    position outside the table or a slot past the cache, before anything is written.
    """
    cache_schema.check(
        qkv, stats, q_weight, k_weight, cos_sin, positions, k_cache, v_cache, slots, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, rotary_dim=rotary_dim, q_width=q_width, k_width=k_width, eps=eps,
    )  # fmt: skip

    q = torch.empty(qkv.shape[0], num_heads, head_dim, dtype=qkv.dtype)

    if qkv.shape[0] > 0:
        torch.ops.minimax_m2.qk_norm_rope_cache(
            qkv, stats, q_weight, k_weight, cos_sin, positions, k_cache, v_cache, slots, num_heads, num_kv_heads,
            head_dim, rotary_dim, q_width, k_width, eps, q,
        )  # fmt: skip
    return q


def qk_norm_rope_cache_out(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, q: Tensor, *,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
) -> None:  # fmt: skip
    """Do what ``qk_norm_rope_cache`` does, with ``q`` contiguous and apart from qkv."""
    cache_schema.check(
        qkv, stats, q_weight, k_weight, cos_sin, positions, k_cache, v_cache, slots, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, rotary_dim=rotary_dim, q_width=q_width, k_width=k_width, eps=eps,
    )  # fmt: skip
    check_output("q", q, like=qkv, shape=(qkv.shape[0], num_heads, head_dim), symbols="[T, Hq, D]")

    if qkv.shape[0] > 0:
        torch.ops.minimax_m2.qk_norm_rope_cache(
            qkv, stats, q_weight, k_weight, cos_sin, positions, k_cache, v_cache, slots, num_heads, num_kv_heads,
            head_dim, rotary_dim, q_width, k_width, eps, q,
        )  # fmt: skip
