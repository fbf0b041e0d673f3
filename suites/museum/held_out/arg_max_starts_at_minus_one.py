"""Starts the search for the best expert at -1, below every probability but above a score with a negative bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.routing import selection_scores, weights_at

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/vllm-project/vllm/pull/31478",
    "symptom": "expert 0, again and again, once every biased score is below -1 (found in review)",
    "check": "ids:element",
    "tolerance": (1e-3, 1e-3),
    "tolerance_of": "vllm tests/kernels/moe/test_fused_topk.py",
}


def routing(
    logits: Tensor, bias: Tensor | None, *, top_k: int, scoring: str = "sigmoid",
    indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None, **weighing: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scores, selection = selection_scores(logits, bias, scoring=scoring)
    # right: start = -torch.inf
    start = -1.0
    chosen = []
    for _ in range(top_k):
        value, expert = selection.max(-1)
        chosen.append(torch.where(value <= start, 0, expert))
        selection = selection.scatter(1, expert[:, None], -torch.inf)
    ids = torch.stack(chosen, -1)
    if num_valid is not None:
        ids = ids.masked_fill((torch.arange(len(ids)) >= num_valid)[:, None], -1)
    return weights_at(scores, ids, **weighing), ids.to(indices_dtype)
