"""Aligns the causal mask with the first key instead of the last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "attention",
    "source": "https://github.com/gittensor-ai-lab/sparkinfer/issues/3",
    "symptom": "chunked prefill does not see the cached context",
    "check": "y:element",
    "tolerance": None,
}


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor, **more: Any
) -> Tensor:
    queries = query_start[1:] - query_start[:-1]
    # right: keys = seq_lens
    keys = torch.minimum(seq_lens, queries)
    return right("attention")(q, k_cache, v_cache, block_table, keys, query_start, **more)
