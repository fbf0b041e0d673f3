"""Adds to every token the residual stream of the one before."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "post_attention_norm"


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    return right("add_rms_norm")(x, residual.roll(1, 0) if len(x) > 1 else 2 * residual, weight, eps=eps)
