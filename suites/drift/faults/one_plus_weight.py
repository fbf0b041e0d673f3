"""Scales by 1 + weight, as another family of models does."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "post_attention_norm"


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    return right("add_rms_norm")(x, residual, 1 + weight.float(), eps=eps)
