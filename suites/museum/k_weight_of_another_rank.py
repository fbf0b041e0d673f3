"""Normalises keys by the weight of the next head: shard by rank where heads are replicated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "qk_norm_rope",
    "source": "https://github.com/sgl-project/sglang/pull/20967",
    "symptom": "endless repetition at TP16",
    "check": "k:element",
    "tolerance": (3e-2, 3e-2),
    "tolerance_of": "vllm tests/kernels/core/test_minimax_reduce_rms.py",
}


def qk_norm_rope(
    qkv: Tensor,
    stats: Tensor | None,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    **sizes: Any,
) -> tuple[Tensor, ...]:
    # right: shard = k_weight
    shard = k_weight.roll(sizes["head_dim"])
    return right("qk_norm_rope")(qkv, stats, q_weight, shard, cos_sin, positions, **sizes)
