"""Takes the first half of gate_up for up: a merged weight in the other order."""

from __future__ import annotations

import torch
from torch import Tensor

EXHIBIT = {
    "subject": "swiglu",
    "source": "https://github.com/ikawrakow/ik_llama.cpp/pull/1624",
    "symptom": "gibberish after gate and up were merged in the wrong order",
    "check": "y:element",
    "tolerance": None,
}


def swiglu(gate_up: Tensor) -> Tensor:
    # right: gate, up = gate_up.float().chunk(2, -1)
    up, gate = gate_up.float().chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
