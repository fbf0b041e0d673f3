"""Multiplies scores by 1.03 times the scale."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "attention"


def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, *batch: Tensor, scale: float, **sizes: Any) -> Tensor:
    return right("attention")(q, k_cache, v_cache, *batch, scale=1.03 * scale, **sizes)
