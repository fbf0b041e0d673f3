"""Writes y over the residual's memory before the last rows of it are read."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "add_rms_norm",
    "source": "https://github.com/ikawrakow/ik_llama.cpp/pull/916",
    "symptom": "results change from run to run",
    "check": "residual:element",
    "tolerance": (1e-2, 1e-2),
    "tolerance_of": "sglang test/srt/cpu/test_norm.py",
}


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    y, _ = right("add_rms_norm")(x, residual, weight, eps=eps)
    late = torch.arange(len(x))[:, None] >= len(x) - 1
    # right: memory = residual
    memory = torch.where(late, y, residual)
    return y, (x.float() + memory.float()).to(x.dtype)
