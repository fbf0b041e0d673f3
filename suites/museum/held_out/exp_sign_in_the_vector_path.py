"""Forgets the minus of exp(-x) in the vector path; the scalar tail has it."""

from __future__ import annotations

import torch
from torch import Tensor

EXHIBIT = {
    "subject": "swiglu",
    "source": "https://github.com/mudler/vllm.cpp/pull/2957",
    "symptom": "wrong SiLU wherever whole vectors are computed",
    "check": "y:element",
    "tolerance": None,
}
VECTOR = 8


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    whole = gate.shape[-1] // VECTOR * VECTOR
    # right: packed = torch.exp(-gate[:, :whole])
    packed = torch.exp(gate[:, :whole])
    exponential = torch.cat([packed, torch.exp(-gate[:, whole:])], -1)
    return (gate / (1 + exponential) * up).to(gate_up.dtype)
