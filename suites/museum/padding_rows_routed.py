"""Routes the rows behind num_valid like all others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.routing import selection_scores, weights_at

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/sgl-project/sglang/pull/31838",
    "symptom": "every padding row goes to the same experts: skewed counts, full buffers, NaN",
    "check": "ids:element",
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
        # right: behind = (torch.arange(len(ids)) >= num_valid)[:, None]
        behind = torch.zeros(len(ids), 1, dtype=torch.bool)
        ids = ids.masked_fill(behind, -1)
    return weights_at(scores, ids, **weighing), ids.to(indices_dtype)
