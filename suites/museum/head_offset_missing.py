"""Writes every head to the place of the first."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "kv_cache",
    "source": "https://github.com/vllm-project/vllm/pull/29887",
    "symptom": "corrupt data for more than one head (found in review)",
    "check": "k_cache:element",
    "tolerance": None,
}


def kv_cache(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, **scales: Any) -> None:
    # right: heads = range(k.shape[1])
    heads = [0] * k.shape[1]
    for source, head in enumerate(heads):
        one, own = slice(head, head + 1), slice(source, source + 1)
        right("kv_cache")(k[:, own], v[:, own], k_cache[:, :, one], v_cache[:, :, one], slots, **scales)
