"""What both of vLLM's wheels do to queries and keys: rms_norm twice, then rotary_embedding in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """rotary_embedding on copies."""
    q, k = q.clone(memory_format=torch.contiguous_format), k.clone(memory_format=torch.contiguous_format)
    rotate(q.flatten(1), k.flatten(1), cos_sin, positions, q.shape[-1])
    return q, k


def rotate(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, head_dim: int) -> None:
    """rotary_embedding in place, of rows of heads."""
    # The engine keeps the table in the model's dtype: a case in another is converted first.
    table = cos_sin if cos_sin.dtype == q.dtype and cos_sin.is_contiguous() else cos_sin.to(q.dtype).contiguous()
    torch.ops._C.rotary_embedding(positions, q, k, head_dim, table, True)


def qk_norm_rope_in_place(
    norm: Callable[..., Tensor],
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor, *,
    num_heads: int, num_kv_heads: int, head_dim: int, rotary_dim: int, q_width: int, k_width: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``norm`` is the wheel's rms_norm; v stays where it is."""
    q, k, v = qkv.split([num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim], -1)
    q, k = norm(q, q_weight, eps=eps), norm(k, k_weight, eps=eps)
    rotate(q, k, cos_sin, positions, head_dim)
    kv_heads = (num_kv_heads, head_dim)
    return q.unflatten(1, (num_heads, head_dim)), k.unflatten(1, kv_heads), v.unflatten(1, kv_heads)


def qk_norm_rope(norm: Callable[..., Tensor], *given: Any, **sizes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The same with v copied, as the op promises."""
    q, k, v = qk_norm_rope_in_place(norm, *given, **sizes)
    return q, k, v.clone(memory_format=torch.contiguous_format)
