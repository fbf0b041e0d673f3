"""Multiplies by a gate that was cast to the model's dtype, where the checkpoint stores float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "router",
    "source": "https://github.com/sgl-project/sglang/pull/33764",
    "symptom": "about 5 % of tokens change experts; SWE-bench 66.8 instead of 79.4",
    "check": "weights:element",
    "tolerance": None,
}


def router(x: Tensor, weight: Tensor, bias: Tensor | None, **choice: Any) -> tuple[Tensor, Tensor]:
    # right: gate = weight
    gate = weight.to(torch.bfloat16)
    return right("router")(x, gate, bias, **choice)
