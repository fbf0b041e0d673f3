"""Recovers the unbiased weight as the biased score less the bias: of a small score nothing is left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.routing import selection_scores, weights_at

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/flashinfer-ai/flashinfer/pull/3875",
    "symptom": "weights 0 or imprecise under a large bias",
    "check": "weights:element",
    "tolerance": (1e-3, 1e-3),
    "tolerance_of": "sglang sgl-kernel/tests/test_moe_topk_sigmoid.py",
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
    # right: unbiased = both[0]
    unbiased = selection - (0.0 if bias is None else bias)
    return weights_at(unbiased, ids, **weighing), ids.to(indices_dtype)
