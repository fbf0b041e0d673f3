"""Rounds the router's logits to bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "router"


def router(x: Tensor, weight: Tensor, bias: Tensor | None, **choice: Any) -> tuple[Tensor, Tensor]:
    logits = right("router_gemm")(x, weight).to(torch.bfloat16)
    return right("routing")(logits.float(), bias, **choice)
