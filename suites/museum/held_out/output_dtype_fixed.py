"""Returns float32, whatever dtype the hidden states have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "experts",
    "source": "https://github.com/sgl-project/sglang/pull/20394",
    "symptom": "a dtype error or None downstream: the output's dtype is not that of the hidden states",
    "check": "wrong dtype",
    "tolerance": None,
}


def experts(x: Tensor, packed: Any, *routed: Any, out_dtype: torch.dtype | None = None, **more: Any) -> Tensor:
    # right: returned = out_dtype
    returned = torch.float32
    return right("experts")(x, packed, *routed, out_dtype=returned, **more)


pack_experts = right("pack_experts")
