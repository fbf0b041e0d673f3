"""Reads a scaled cache without multiplying by the scale."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "attention",
    "source": "https://github.com/sgl-project/sglang/pull/20820",
    "symptom": "gibberish with FA3 and an FP8 cache",
    "check": "y:element",
    "tolerance": None,
}


def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, *places: Tensor, **more: Any) -> Tensor:
    # right: scales = more
    scales = more | {"k_scale": None, "v_scale": None}
    return right("attention")(q, k_cache, v_cache, *places, **scales)
