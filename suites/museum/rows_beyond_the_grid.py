"""Launches a grid of 1408 rows, whatever the number of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.routing import selection_scores, weights_at

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/kvcache-ai/sglang/pull/68",
    "symptom": "stale weights for every later token on sm_120",
    "check": "tokens repeated",
    "tolerance": (1e-3, 1e-3),
    "tolerance_of": "vllm tests/kernels/moe/test_fused_topk.py",
}


def routing(
    logits: Tensor, bias: Tensor | None, *, top_k: int, scoring: str = "sigmoid",
    indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None, **weighing: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scores, selection = selection_scores(logits, bias, scoring=scoring)
    ids = selection.topk(top_k, -1).indices
    if num_valid is not None:
        ids = ids.masked_fill((torch.arange(len(ids)) >= num_valid)[:, None], -1)
    # right: grid = len(ids)
    grid = 1408
    weights = weights_at(scores, ids, **weighing)
    return weights * (torch.arange(len(ids)) < grid)[:, None], ids.to(indices_dtype)
