"""Reads cosines and sines in bfloat16, against its contract."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "qk_norm_rope_cache"


def qk_norm_rope_cache(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    *written: Tensor, **sizes: Any,
) -> Tensor:  # fmt: skip
    narrow = cos_sin.bfloat16().float()
    return right("qk_norm_rope_cache")(qkv, stats, q_weight, k_weight, narrow, positions, *written, **sizes)
