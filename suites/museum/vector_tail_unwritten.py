"""Computes whole vectors only; the last channels stay as they were."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "swiglu",
    "source": "https://github.com/sgl-project/sglang/pull/6919",
    "symptom": "wrong tail where the width is no multiple of the vector (found in review)",
    "check": "y:element",
    "tolerance": None,
}


VECTOR = 8


def swiglu(gate_up: Tensor) -> Tensor:
    y = right("swiglu")(gate_up)
    width = y.shape[-1]
    # right: written = width
    written = width // VECTOR * VECTOR
    return y * (torch.arange(width) < written)
