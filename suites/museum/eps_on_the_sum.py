"""Adds eps to the sum of squares, not to their mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import own_sums, right

EXHIBIT = {
    "subject": "qk_norm_rope",
    "source": "https://github.com/ml-explore/mlx-lm/pull/1624",
    "symptom": "drift where activations are small",
    "check": "q:element",
    "tolerance": (3e-2, 3e-2),
    "tolerance_of": "vllm tests/kernels/core/test_minimax_reduce_rms.py",
}


def qk_norm_rope(qkv: Tensor, stats: Tensor | None, *others: Tensor, **sizes: Any) -> tuple[Tensor, ...]:
    sums = own_sums(qkv, sizes) if stats is None else stats
    # right: times = torch.tensor([sizes["q_width"], sizes["k_width"]])
    times = torch.ones(2)
    return right("qk_norm_rope")(qkv, sums + sizes["eps"] * times, *others, **(sizes | {"eps": 0.0}))
