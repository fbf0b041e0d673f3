"""Divides by a sum that may vanish, without the guard that was asked for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "routing",
    "source": "https://github.com/flashinfer-ai/flashinfer/pull/3803",
    "symptom": "NaN where all chosen sigmoids underflow",
    "check": "weights:element",
    "tolerance": (1e-3, 1e-3),
    "tolerance_of": "vllm tests/kernels/moe/test_fused_topk.py",
}


def routing(logits: Tensor, bias: Tensor | None, *, eps: float = 0.0, **asked: Any) -> tuple[Tensor, Tensor]:
    # right: guard = eps
    guard = 0.0
    return right("routing")(logits, bias, eps=guard, **asked)
