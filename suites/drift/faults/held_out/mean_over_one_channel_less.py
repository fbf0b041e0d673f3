"""Divides the sum of squares by one channel too few."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "post_attention_norm"


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    y, total = right("add_rms_norm")(x.double(), residual.double(), weight.double(), eps=eps * (width - 1) / width)
    return (y * ((width - 1) / width) ** 0.5).to(x.dtype), total.to(x.dtype)
