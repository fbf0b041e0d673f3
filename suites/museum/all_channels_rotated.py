"""Rotates whole heads: rotary_dim was lost on the way from the config."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "rope",
    "source": "https://github.com/huggingface/transformers/pull/48486",
    "symptom": "KL of 13 against a faithful reference: wrong pairs in every layer",
    "check": "q:element",
    "tolerance": None,
}


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, Tensor]:
    head_dim = q.shape[-1]
    # right: width = rotary_dim
    width = head_dim
    rows = cos_sin[:, :rotary_dim]
    # Behind the row a kernel would read the next one; here it reads the row again.
    table = torch.cat([half.repeat(1, -(-width // rotary_dim))[:, : width // 2] for half in rows.chunk(2, -1)], -1)
    return right("rope")(q, k, table, positions, rotary_dim=width)
