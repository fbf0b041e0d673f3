"""Multiplies page and stride in 32 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "kv_cache",
    "source": "https://github.com/vllm-project/vllm/pull/1514",
    "symptom": "overflow in attention and cache kernels once there are many blocks",
    "check": "k_cache:element",
    "tolerance": None,
}


def kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, **scales: Any) -> None:
    page = k_cache.shape[1]
    offsets = slots // page * k_cache.stride(0)
    # right: reached = offsets
    reached = offsets.to(torch.int32).long()
    # Where the offset wrapped, the write lands outside the cache; here it is dropped.
    right("kv_cache")(k, v, k_cache, v_cache, slots.masked_fill(reached != offsets, -1), **scales)
