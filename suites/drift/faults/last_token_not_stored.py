"""Does not write the last token's key and value to the cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "qk_norm_rope_cache"


def qk_norm_rope_cache(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, **sizes: Any,
) -> Tensor:  # fmt: skip
    kept = slots.clone()
    kept[-1] = -1
    return right("qk_norm_rope_cache")(
        qkv, stats, q_weight, k_weight, cos_sin, positions, k_cache, v_cache, kept, **sizes
    )
