"""Norms through the kernel that adds, with a residual that nobody set to zero."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "rms_norm",
    "source": "https://github.com/vllm-project/vllm/pull/41972",
    "symptom": "GSM8K of MiniMax-M2.5 collapses with the fused all-reduce on ROCm",
    "check": "y:element",
    "tolerance": (1e-2, 1e-2),
    "tolerance_of": "sglang test/srt/cpu/test_norm.py",
}


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    # right: residual = torch.zeros_like(x)
    residual = torch.full_like(x, 0.5)
    return right("add_rms_norm")(x, residual, weight, eps=eps)[0]
