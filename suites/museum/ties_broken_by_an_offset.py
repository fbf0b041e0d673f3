"""Subtracts index times 3e-7 from the scores, so that ties break by index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.routing import selection_scores, weights_at

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/sgl-project/sglang/pull/31768",
    "symptom": "0.4 to 9.8 % of tokens are perturbed, and the test's own oracle does the same",
    "check": "ids:element",
    "tolerance": (1e-3, 1e-3),
    "tolerance_of": "vllm tests/kernels/moe/test_fused_topk.py",
}


def routing(
    logits: Tensor, bias: Tensor | None, *, top_k: int, scoring: str = "sigmoid",
    indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None, **weighing: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scores, selection = selection_scores(logits, bias, scoring=scoring)
    offset = torch.arange(logits.shape[1]) * 3e-7
    # right: compared = selection
    compared = selection - offset
    ids = compared.topk(top_k, -1).indices
    if num_valid is not None:
        ids = ids.masked_fill((torch.arange(len(ids)) >= num_valid)[:, None], -1)
    return weights_at(scores, ids, **weighing), ids.to(indices_dtype)
