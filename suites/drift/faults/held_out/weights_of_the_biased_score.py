"""Weighs the experts by the score that chose them, bias included."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "router"


def router(x: Tensor, weight: Tensor, bias: Tensor | None, **choice: Any) -> tuple[Tensor, Tensor]:
    _, ids = right("router")(x, weight, bias, **choice)
    scores = right("router_gemm")(x, weight).sigmoid() + (0 if bias is None else bias)
    weights = scores.gather(-1, ids.long())
    return weights / weights.sum(-1, keepdim=True), ids
