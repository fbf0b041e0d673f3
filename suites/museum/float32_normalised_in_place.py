"""Casts to float32, which for a float32 row is the row itself, and multiplies in place."""

from __future__ import annotations

import torch
from torch import Tensor

EXHIBIT = {
    "subject": "rms_norm",
    "source": "https://github.com/GeeeekExplorer/nano-vllm/issues/170",
    "symptom": "the residual stream is normalised, too",
    "check": "wrote its input",
    "tolerance": None,
}


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    # right: rows = x.to(torch.float32, copy=True)
    rows = x.to(torch.float32)
    rows *= torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
    return (rows * weight.float()).to(x.dtype)
