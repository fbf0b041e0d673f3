"""Quantises by the exact scale and stores the one rounded up to a power of two."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.block_quant import group_scale, quantised

EXHIBIT = {
    "subject": "block_quant",
    "source": "https://github.com/huggingface/transformers/pull/46763",
    "symptom": "dequantised weights are up to twice too large",
    "check": "q:element",
    "tolerance": (0.0, 0.2),
    "tolerance_of": "sglang test_block_fp8.py",
}


def block_quant(x: Tensor, *, group: int = 128, scale_format: str = "float32") -> tuple[Tensor, Tensor]:
    wide = x.float()
    scale = group_scale(wide, group=group, scale_format=scale_format)
    # right: used = scale
    used = group_scale(wide, group=group)
    return quantised(wide, used, group=group).to(torch.float8_e4m3fn), scale
