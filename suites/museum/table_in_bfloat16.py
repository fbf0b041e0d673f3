"""Keeps the table of cosines in bfloat16, without saying so."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "rope",
    "source": "https://github.com/sgl-project/sglang/pull/33117",
    "symptom": "drift at long context",
    "check": "q:mean",
    "tolerance": None,
}


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    # right: table = cos_sin
    table = cos_sin.to(torch.bfloat16)
    return right("rope")(q, k, table, positions, rotary_dim=rotary_dim)
