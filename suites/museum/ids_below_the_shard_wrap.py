"""Masks ids above the shard only: those below index from its end."""

from __future__ import annotations

from torch import Tensor

EXHIBIT = {
    "subject": "embedding",
    "source": "https://github.com/NVIDIA/TensorRT-LLM/pull/15233",
    "symptom": "id -1 of rejected draft tokens reads out of bounds",
    "check": "rows:element",
    "tolerance": None,
}


def embedding(ids: Tensor, weight: Tensor, *, vocab_start: int = 0) -> Tensor:
    local = ids.long() - vocab_start
    # right: outside = (local < 0) | (local >= len(weight))
    outside = (local < -len(weight)) | (local >= len(weight))
    return weight[local.masked_fill(outside, 0)].masked_fill(outside[:, None], 0.0)
