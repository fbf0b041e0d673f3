"""Quantises x to e4m3 per token without a contract that says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "experts"


def pack_experts(w13: Tensor, w2: Tensor, **scales: Any) -> Any:
    return right("pack_experts")(w13, w2, **scales)


def experts(x: Tensor, packed: Any, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True).float() / 448
    codes = (x.float() / scale).to(torch.float8_e4m3fn)
    return right("experts")((codes.float() * scale).to(x.dtype), packed, weights, ids, **choice)
