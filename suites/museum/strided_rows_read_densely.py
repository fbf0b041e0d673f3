"""Reads strided rows as if they followed each other."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "rms_norm",
    "source": "https://github.com/vllm-project/vllm-xpu-kernels/pull/95",
    "symptom": "accuracy, once callers stop copying their slices",
    "check": "y:element",
    "tolerance": None,
}


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    # right: rows = x
    rows = x.as_strided(x.shape, (x.shape[1], 1))
    return right("rms_norm")(rows, weight, eps=eps)
