"""Leaves the last row of what it returns as the row before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "qkv"


def linear(x: Tensor, weight: Tensor, **out: Any) -> Tensor:
    y = right("linear")(x, weight, **out)
    return torch.cat([y[:-1], y[-2:-1]]) if len(y) > 1 else y * 0
