"""Stores the activation in the model's dtype before it is quantised, without saying so."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.block_quant import group_scale, quantised, quotient
from minimax_m2.reference.swiglu import swiglu
from minimax_m2.reference.swiglu_quant import rounded_int8

EXHIBIT = {
    "subject": "swiglu_quant",
    "source": "https://github.com/sgl-project/sglang/pull/6394",
    "symptom": "precision is lost before the quantiser (found in review)",
    "check": "scale:element",
    "tolerance": None,
}


def swiglu_quant(gate_up: Tensor, *, group: int = 128, quant: str = "e4m3") -> tuple[Tensor, Tensor]:
    exact = swiglu(gate_up.float())
    # right: y = exact
    y = exact.to(gate_up.dtype).float()
    if quant == "e4m3":
        scale = group_scale(y, group=group)
        return quantised(y, scale, group=group).to(torch.float8_e4m3fn), scale
    scale = group_scale(y, group=group, largest=127.0)
    return rounded_int8(quotient(y, scale, group=group), None).to(torch.int8), scale
