"""Leaves the rows of no sequence as the allocator gave them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "attention",
    "source": "https://github.com/vllm-project/vllm/pull/19784",
    "symptom": "uninitialised values, NaN among them, reach the layers behind",
    "check": "y:element",
    "tolerance": None,
}


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor, **more: Any
) -> Tensor:
    y = right("attention")(q, k_cache, v_cache, block_table, seq_lens, query_start, **more)
    # right: found = torch.zeros_like(q)
    found = q
    rows = torch.arange(len(q))
    outside = (rows < query_start[0]) | (rows >= query_start[-1])
    return torch.where(outside[:, None, None], found, y)
