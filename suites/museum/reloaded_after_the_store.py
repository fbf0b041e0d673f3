"""Reads the first half again after it was rotated: a barrier is missing between store and load."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.rope import rotation_rows

EXHIBIT = {
    "subject": "rope",
    "source": "https://github.com/vllm-project/vllm-ascend/pull/12723",
    "symptom": "queries and keys lose their norm",
    "check": "q:element",
    "tolerance": None,
}


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, ...]:
    half = rotary_dim // 2
    cos, sin = rotation_rows(cos_sin.float(), positions, rotary_dim=rotary_dim, head_dim=q.shape[-1]).chunk(2, -1)
    outputs = []
    for x in (q, k):
        first, second, rest = x.float().split([half, half, x.shape[-1] - rotary_dim], -1)
        turned = first * cos - second * sin
        # right: loaded = first
        loaded = turned
        outputs.append(torch.cat([turned, second * cos + loaded * sin, rest], -1).to(x.dtype))
    return tuple(outputs)
