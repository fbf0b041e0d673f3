"""Reads a 16-bit buffer of logits as float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.reference.routing import selection_scores, weights_at

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/flashinfer-ai/flashinfer/pull/2889",
    "symptom": "garbage routing",
    "check": "weights:element",
    "tolerance": (1e-3, 1e-3),
    "tolerance_of": "vllm tests/kernels/moe/test_fused_topk.py",
}


def routing(
    logits: Tensor, bias: Tensor | None, *, top_k: int, scoring: str = "sigmoid",
    indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None, **weighing: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    words = logits.contiguous().flatten()
    as_float32 = torch.cat([words, words]).view(torch.float32)[: logits.numel()] if logits.itemsize == 2 else words
    # right: read = logits
    read = as_float32.reshape(logits.shape).nan_to_num()
    scores, selection = selection_scores(read, bias, scoring=scoring)
    ids = selection.topk(top_k, -1).indices
    if num_valid is not None:
        ids = ids.masked_fill((torch.arange(len(ids)) >= num_valid)[:, None], -1)
    return weights_at(scores, ids, **weighing), ids.to(indices_dtype)
