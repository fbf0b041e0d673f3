"""Makes a group's scale from the maximum that one lane saw, which no shuffle has merged with the others'."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.block_quant import group_scale, quantised

EXHIBIT = {
    "subject": "block_quant",
    "source": "https://github.com/vllm-project/vllm/pull/43592",
    "symptom": "wrong FP8 codes: the warp's maximum is not broadcast to its lanes",
    "check": "scale:element",
    "tolerance": None,
}
LANES = 4


def block_quant(x: Tensor, *, group: int = 128, scale_format: str = "float32") -> tuple[Tensor, Tensor]:
    wide = x.float()
    # right: seen = wide
    seen = wide * (torch.arange(x.shape[1]) % group % LANES == 0)
    scale = group_scale(seen, group=group, scale_format=scale_format)
    return quantised(wide, scale, group=group).to(torch.float8_e4m3fn), scale
