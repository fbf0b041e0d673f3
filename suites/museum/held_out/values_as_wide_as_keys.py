"""Copies value heads by the width of a key head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "qkvzba_split",
    "source": "https://github.com/sgl-project/sglang/pull/19484",
    "symptom": "wrong v and z in the interleaved layout where the two head widths differ (read in the code, not run)",
    "check": "z:element",
    "tolerance": None,
}


def qkvzba_split(qkvz: Tensor, ba: Tensor, **sizes: Any) -> tuple[Tensor, ...]:
    qkv, z, b, a = right("qkvzba_split")(qkvz, ba, **sizes)
    # right: copied = z.shape[2]
    copied = min(z.shape[2], sizes["head_k_dim"]) if sizes["layout"] == "interleaved" else z.shape[2]
    return qkv, torch.where(torch.arange(z.shape[2]) < copied, z, 0.0), b, a
