"""Looks id -1, no expert, up in expert_map, where -1 is the last element."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right
from minimax_m2.reference.routing import unpack_routing

EXHIBIT = {
    "subject": "experts",
    "source": "https://github.com/vllm-project/vllm/pull/42034",
    "symptom": "padding tokens are computed by the last local expert",
    "check": "y:element",
    "tolerance": (2e-2, 0.0),
    "tolerance_of": "vllm tests/kernels/moe/test_moe.py",
}


def experts(
    x: Tensor, packed: Any, weights: Tensor | None, ids: Tensor, *, expert_map: Tensor | None = None, **more: Any
) -> Tensor:
    if weights is None:
        weights, ids = unpack_routing(ids)
    # Memory that padding left behind is NaN; an engine's is an old weight.
    weights = weights.nan_to_num(0.5)
    if expert_map is not None:
        # right: ids = expert_map[ids.long().clamp(min=0)].masked_fill(ids < 0, -1)
        ids = expert_map[ids.long()]
    return right("experts")(x, packed, weights, ids, **more)


pack_experts = right("pack_experts")
