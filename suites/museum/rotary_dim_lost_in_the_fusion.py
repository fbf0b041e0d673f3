"""Rotates whole heads in the fused kernel only: rotary_dim has a default there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "qk_norm_rope_cache",
    "source": "https://github.com/vllm-project/vllm/pull/43676",
    "symptom": "gsm8k 0 of 1319",
    "check": "q:element",
    "tolerance": None,
}


def qk_norm_rope_cache(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, *places: Tensor,
    rotary_dim: int, head_dim: int, **sizes: Any,
) -> Tensor:  # fmt: skip
    # right: width = rotary_dim
    width = head_dim
    rows = cos_sin[:, :rotary_dim]
    # Behind the row a kernel would read the next one; here it reads the row again.
    table = torch.cat([half.repeat(1, -(-width // rotary_dim))[:, : width // 2] for half in rows.chunk(2, -1)], -1)
    given = (qkv, stats, q_weight, k_weight, table, *places)
    return right("qk_norm_rope_cache")(*given, rotary_dim=width, head_dim=head_dim, **sizes)
