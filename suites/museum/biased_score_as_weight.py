"""Weighs by the biased score that selects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.routing import selection_scores, weights_at

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/MetaX-MACA/vLLM-metax/issues/270",
    "symptom": "bad quality where (experts, top_k) is (128, 8): ids right, weights wrong by up to 3",
    "check": "weights:element",
    "tolerance": (1e-3, 1e-3),
    "tolerance_of": "vllm tests/kernels/moe/test_fused_topk.py",
}


def routing(
    logits: Tensor, bias: Tensor | None, *, top_k: int, scoring: str = "sigmoid",
    indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None, **weighing: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    both = selection_scores(logits, bias, scoring=scoring)
    selection = both[1]
    ids = selection.topk(top_k, -1).indices
    if num_valid is not None:
        ids = ids.masked_fill((torch.arange(len(ids)) >= num_valid)[:, None], -1)
    # right: weighing_score = both[0]
    weighing_score = both[1]
    return weights_at(weighing_score, ids, **weighing), ids.to(indices_dtype)
