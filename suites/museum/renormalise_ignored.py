"""Takes renormalize and never looks at it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.routing import selection_scores, weights_at

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/vllm-project/vllm/pull/31246",
    "symptom": "unnormalised weights on ROCm (found in review)",
    "check": "weights:element",
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
    weighing |= {"renormalize": weighing.get("renormalize", True)}
    # right: asked: dict[str, Any] = weighing
    asked: dict[str, Any] = weighing | {"renormalize": False}
    return weights_at(scores, ids, **asked), ids.to(indices_dtype)
