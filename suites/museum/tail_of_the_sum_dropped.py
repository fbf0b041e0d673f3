"""Sums whole tiles of the inner dimension and skips the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "linear",
    "source": "https://github.com/NVIDIA/cutlass/issues/3536",
    "symptom": "wrong products for accepted sizes such as K = 1152",
    "check": "y:element",
    "tolerance": None,
}


TILE = 64


def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    H = x.shape[1]
    # right: summed = H
    summed = H // TILE * TILE
    return right("linear")(x[:, :summed], weight[:, :summed], out_dtype=out_dtype)
