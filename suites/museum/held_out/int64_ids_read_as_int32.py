"""Reads 64-bit expert ids as 32-bit ones: every other id is 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "experts",
    "source": "https://github.com/sgl-project/sglang/pull/25061",
    "symptom": "crash or garbage on CPU: top-k hands int64 ids to a kernel that takes int32",
    "check": "y:element",
    "tolerance": (1e-2, 1e-2),
    "tolerance_of": "sglang test/srt/cpu/test_moe.py",
}


def experts(x: Tensor, packed: Any, weights: Tensor | None, ids: Tensor, **more: Any) -> Tensor:
    # right: read = ids
    read = ids.contiguous().view(torch.int32)[:, : ids.shape[1]]
    return right("experts")(x, packed, weights, read, **more)


pack_experts = right("pack_experts")
