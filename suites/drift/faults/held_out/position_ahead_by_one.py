"""Rotates every token as if it stood one place later."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "qk_norm_rope_cache"


def qk_norm_rope_cache(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    *written: Tensor, **sizes: Any,
) -> Tensor:  # fmt: skip
    later = (positions + 1).clamp(max=len(cos_sin) - 1)
    return right("qk_norm_rope_cache")(qkv, stats, q_weight, k_weight, cos_sin, later, *written, **sizes)
