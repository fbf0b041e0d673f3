"""Reads the second key where the first stands."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "attention"


def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, *batch: Tensor, scale: float, **sizes: Any) -> Tensor:
    table = batch[0]
    page = int(table[0, 0])
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    k_cache[page, 0], v_cache[page, 0] = k_cache[page, 1], v_cache[page, 1]
    return right("attention")(q, k_cache, v_cache, *batch, scale=scale, **sizes)
