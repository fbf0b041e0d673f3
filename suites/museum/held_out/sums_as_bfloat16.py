"""Sends the sums of squares through the all-reduce as 16-bit payload."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "qk_sum_squares",
    "source": "https://github.com/vllm-project/vllm/pull/44003",
    "symptom": "wrong output with FlashInfer's fused all-reduce: its float32 [T, 2] was taken for 16-bit data",
    "check": "stats:element",
    "tolerance": None,
}


def qk_sum_squares(qkv: Tensor, **heads: Any) -> Tensor:
    sums = right("qk_sum_squares")(qkv, **heads)
    # right: return sums
    return sums.to(torch.bfloat16).to(torch.float32)
