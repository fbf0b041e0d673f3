"""Decodes slots by pages of 16, whatever page size numbered them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.kv_cache import cache_entries

EXHIBIT = {
    "subject": "kv_cache",
    "source": "https://github.com/vllm-project/vllm/pull/47056",
    "symptom": "a corrupt cache: the kernel's block size is not the cache manager's",
    "check": "k_cache:element",
    "tolerance": None,
}


def kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, **scales: Any) -> None:
    kept = slots[slots >= 0]
    # right: page = k_cache.shape[1]
    page = 16
    # What strays beyond the cache wraps, so that it is judged by what it overwrites and not by a crash.
    at = (kept // page % len(k_cache), kept % page % k_cache.shape[1])
    for x, cache, name in ((k, k_cache, "k_scale"), (v, v_cache, "v_scale")):
        entries = cache_entries(x.to(torch.float32), scale=scales.get(name), dtype=cache.dtype)
        cache[at] = entries[slots >= 0].to(cache.dtype)
