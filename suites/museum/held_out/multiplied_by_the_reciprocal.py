"""Multiplies by the rounded reciprocal of the scale, without saying so: codes flip at ties."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.block_quant import group_scale, quantised
from minimax_m2.reference.contract import EXACT, Contract

EXHIBIT = {
    "subject": "block_quant",
    "source": "https://github.com/vllm-project/vllm/pull/43592",
    "symptom": "other FP8 codes than by division",
    "check": "q:element",
    "tolerance": (0.0, 0.2),
    "tolerance_of": "sglang test_block_fp8.py",
}


def block_quant(x: Tensor, *, group: int = 128, scale_format: str = "float32") -> tuple[Tensor, Tensor]:
    wide = x.float()
    scale = group_scale(wide, group=group, scale_format=scale_format)
    # right: contract = EXACT
    contract = Contract({**EXACT.fields, "reciprocal": "float32"})
    return quantised(wide, scale, group=group, contract=contract).to(torch.float8_e4m3fn), scale
