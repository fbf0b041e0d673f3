"""Sums the squares of every local key head, replicas too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "qk_sum_squares",
    "source": "https://github.com/vllm-project/vllm/pull/38191",
    "symptom": "k_norm is wrong once there are more ranks than key heads",
    "check": "stats:element",
    "tolerance": (1e-2, 1e-2),
    "tolerance_of": "sglang jit_kernel tests test_tp_qknorm.py",
}


def qk_sum_squares(qkv: Tensor, *, counted_kv_heads: int | None = None, **heads: Any) -> Tensor:
    # right: counted = counted_kv_heads
    counted = None
    return right("qk_sum_squares")(qkv, counted_kv_heads=counted, **heads)
