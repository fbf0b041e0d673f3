"""Pairs channel j with j + D/2, the partner of a head that rotates whole."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.rope import rotation_rows

EXHIBIT = {
    "subject": "rope",
    "source": "https://github.com/pie-project/pie/pull/603",
    "symptom": "accuracy falls with context length wherever rotary_dim is below head_dim",
    "check": "q:element",
    "tolerance": None,
}


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, *, rotary_dim: int) -> tuple[Tensor, ...]:
    head_dim, half = q.shape[-1], rotary_dim // 2
    cos, sin = rotation_rows(cos_sin.float(), positions, rotary_dim=rotary_dim, head_dim=head_dim).chunk(2, -1)
    # right: partner = half
    partner = head_dim // 2
    outputs = []
    for x in (q, k):
        y = x.to(torch.float32, copy=True)
        first, second = x[..., :half].float(), x[..., partner : partner + half].float()
        y[..., :half] = first * cos - second * sin
        y[..., partner : partner + half] = second * cos + first * sin
        outputs.append(y.to(x.dtype))
    return tuple(outputs)
