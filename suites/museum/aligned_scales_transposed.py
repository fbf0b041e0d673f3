"""Stores scales column by column, for a reader of rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "add_rms_norm_quant",
    "source": "https://github.com/vllm-project/vllm/pull/33255",
    "symptom": "the fusion fails since scales may be aligned for TMA",
    "check": "scale:element",
    "tolerance": None,
}


def add_rms_norm_quant(x: Tensor, residual: Tensor, weight: Tensor, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, scale, total = right("add_rms_norm_quant")(x, residual, weight, **more)
    # right: stored = scale
    stored = scale.mT.reshape(scale.shape)
    return q, stored, total
