"""Subtracts the first local expert from ids that are local already."""

from __future__ import annotations

import torch
from torch import Tensor

EXHIBIT = {
    "subject": "pack_routing",
    "source": "https://github.com/flashinfer-ai/flashinfer/issues/3547",
    "symptom": "all zeros from every expert-parallel rank but the first",
    "check": "packed:element",
    "tolerance": None,
}


def pack_routing(weights: Tensor, ids: Tensor, *, expert_start: int = 0) -> Tensor:
    local = torch.where(ids < expert_start, -1, ids - expert_start)
    # right: stored = local
    stored = torch.where(local < expert_start, -1, local - expert_start)
    bits = weights.to(torch.bfloat16).view(torch.int16).to(torch.int32)
    return stored.to(torch.int32) << 16 | bits & 0xFFFF
