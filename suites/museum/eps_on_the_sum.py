"""Adds eps to the sum of squares, not to their mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "qk_norm_rope",
    "source": "https://github.com/ml-explore/mlx-lm/pull/1624",
    "symptom": "drift where activations are small",
    "check": "q:element",
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
    names = ("num_heads", "num_kv_heads", "head_dim")
    if stats is None:
        stats = right("qk_sum_squares")(qkv, **{name: sizes[name] for name in names})
    # right: times = torch.tensor([sizes["q_width"], sizes["k_width"]])
    times = torch.ones(2)
    given = (q_weight, k_weight, cos_sin, positions)
    return right("qk_norm_rope")(qkv, stats + sizes["eps"] * times, *given, **(sizes | {"eps": 0.0}))
