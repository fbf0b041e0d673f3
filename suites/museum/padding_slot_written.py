"""Writes slot -1, a token that is not stored, into the last slot."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "kv_cache",
    "source": "https://github.com/vllm-project/vllm/issues/43810",
    "symptom": "padding of a captured graph overwrites the last slot",
    "check": "k_cache:element",
    "tolerance": None,
}


def kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, **scales: Any) -> None:
    count = k_cache.shape[0] * k_cache.shape[1]
    # right: written = slots
    written = slots % count
    right("kv_cache")(k, v, k_cache, v_cache, written, **scales)
