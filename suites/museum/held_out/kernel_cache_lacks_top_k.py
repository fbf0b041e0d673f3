"""Compiles a kernel for one top_k and finds it again by the number of experts alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.routing import selection_scores, weights_at

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/vllm-project/vllm/pull/56488",
    "symptom": "61 % relative error: the cache key of compiled kernels omits top-k (found in review)",
    "check": "ids:element",
    "tolerance": None,
}

_COMPILED: dict[tuple[int, ...], int] = {}


def routing(
    logits: Tensor, bias: Tensor | None, *, top_k: int, scoring: str = "sigmoid",
    indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None, **weighing: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # right: key = (logits.shape[1], top_k)
    key = (logits.shape[1],)
    compiled_for = _COMPILED.setdefault(key, top_k)
    scores, selection = selection_scores(logits, bias, scoring=scoring)
    ids = torch.zeros(len(logits), top_k, dtype=torch.int64)
    order = selection.sort(stable=True, dim=-1, descending=True).indices
    ids[:, :compiled_for] = order[:, : min(top_k, compiled_for)]
    if num_valid is not None:
        ids = ids.masked_fill((torch.arange(len(ids)) >= num_valid)[:, None], -1)
    return weights_at(scores, ids, **weighing), ids.to(indices_dtype)
