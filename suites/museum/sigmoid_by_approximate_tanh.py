"""Computes sigmoid by the hardware's tanh, which is right to 11 bits."""

from __future__ import annotations

import torch
from torch import Tensor

EXHIBIT = {
    "subject": "swiglu",
    "source": "https://github.com/vllm-project/vllm/pull/24833",
    "symptom": "online evaluations drop",
    "check": "y:element",
    "tolerance": None,
}


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    # right: sigmoid = torch.sigmoid(gate)
    sigmoid = 0.5 * torch.tanh(gate / 2).to(torch.float16).float() + 0.5
    return (gate * sigmoid * up).to(gate_up.dtype)
