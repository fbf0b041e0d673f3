"""Gives blocks behind the last used one to expert 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "moe_align",
    "source": "https://github.com/vllm-project/vllm/pull/35161",
    "symptom": "padding is computed by expert 0",
    "check": "block_experts:element",
    "tolerance": (0.0, 0.0),
    "tolerance_of": "vllm tests/kernels/moe/test_moe_align_block_size.py",
}


def moe_align(ids: Tensor, **more: Any) -> tuple[Tensor, ...]:
    slots, experts, padded, counts = right("moe_align")(ids, **more)
    # right: nobody = -1
    nobody = 0
    return slots, experts.masked_fill(experts < 0, nobody), padded, counts
