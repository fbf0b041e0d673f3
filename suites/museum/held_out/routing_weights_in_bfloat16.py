"""Rounds float32 routing weights to bfloat16 on their way to the experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "experts",
    "source": "https://github.com/sgl-project/sglang/pull/33631",
    "symptom": "small drift: the packed format truncates the weights that the router made",
    "check": "y:row",
    "tolerance": (2e-2, 0.0),
    "tolerance_of": "vllm tests/kernels/moe/test_moe.py",
}


def experts(x: Tensor, packed: Any, weights: Tensor | None, ids: Tensor, **more: Any) -> Tensor:
    # right: given = weights
    given = None if weights is None else weights.to(torch.bfloat16)
    return right("experts")(x, packed, given, ids, **more)


pack_experts = right("pack_experts")
