"""Adds 1e-3 where the configuration says 1e-6."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "post_attention_norm"


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    return right("add_rms_norm")(x, residual, weight, eps=1e-3)
