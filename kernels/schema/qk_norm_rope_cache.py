"""Schema and host-side checks of ``qk_norm_rope_cache``: those of its parts, and that the formats fit."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema import kv_cache, qk_norm_rope

schema.define(
    "qk_norm_rope_cache(Tensor qkv, Tensor? stats, Tensor q_weight, Tensor k_weight, Tensor cos_sin, "
    "Tensor positions, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, int num_heads, int num_kv_heads, "
    "int head_dim, int rotary_dim, int q_width, int k_width, float eps, Tensor(c!) q) -> ()"
)


def check(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, *,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
) -> None:  # fmt: skip
    """Raise what the host can know about the arguments of ``qk_norm_rope_cache``."""
    qk_norm_rope.check(
        qkv, stats, q_weight, k_weight, cos_sin, positions, num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_dim=head_dim, rotary_dim=rotary_dim, q_width=q_width, k_width=k_width, eps=eps,
    )  # fmt: skip
    kv_cache.check_cache(
        k_cache, v_cache, slots, num_tokens=qkv.shape[0], heads=(num_kv_heads, head_dim), device=qkv.device
    )
    schema.expect_dtype("k_cache", k_cache, (qkv.dtype, torch.float8_e4m3fn))
