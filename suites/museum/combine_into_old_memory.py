"""Leaves rows without an expert as the allocator gave them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right
from minimax_m2.reference.routing import unpack_routing

EXHIBIT = {
    "subject": "experts",
    "source": "https://github.com/vllm-project/vllm/pull/39645",
    "symptom": "NaN may leak from memory that nobody initialised",
    "check": "y:element",
    "tolerance": (2e-2, 0.0),
    "tolerance_of": "vllm tests/kernels/moe/test_moe.py",
}


def experts(x: Tensor, packed: Any, weights: Tensor | None, ids: Tensor, **more: Any) -> Tensor:
    y = right("experts")(x, packed, weights, ids, **more)
    global_ids = ids if weights is not None else unpack_routing(ids)[1]
    expert_map = more.get("expert_map")
    local = global_ids if expert_map is None else expert_map[global_ids.long()]
    unwritten = ((local < 0) | (global_ids < 0)).all(-1, keepdim=True)
    # right: found = 0.0
    found = 0.25
    return y.masked_fill(unwritten, found)


pack_experts = right("pack_experts")
