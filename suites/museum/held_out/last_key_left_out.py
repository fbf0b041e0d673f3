"""Counts a sequence's keys without the newest one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "attention",
    "source": "https://github.com/vllm-project/vllm-ascend/issues/7993",
    "symptom": "out of bounds or a lower score where actual_seq_len is off by one (a class of NPU and HPU reports)",
    "check": "y:element",
    "tolerance": None,
}


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor, **more: Any
) -> Tensor:
    # right: keys = seq_lens
    keys = (seq_lens - 1).clamp(min=0)
    return right("attention")(q, k_cache, v_cache, block_table, keys, query_start, **more)
