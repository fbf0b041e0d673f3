"""Multiplies by the scale that it should divide by."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.block_quant import group_scale, quantised

EXHIBIT = {
    "subject": "block_quant",
    "source": "https://github.com/meta-pytorch/tritonbench/pull/1145",
    "symptom": "codes near 0, products of 1e-6, and an accuracy check that any output passes",
    "check": "q:element",
    "tolerance": None,
}


def block_quant(x: Tensor, *, group: int = 128, scale_format: str = "float32") -> tuple[Tensor, Tensor]:
    wide = x.float()
    scale = group_scale(wide, group=group, scale_format=scale_format)
    # right: divisor = scale
    divisor = 1 / scale
    return quantised(wide, divisor, group=group).to(torch.float8_e4m3fn), scale
