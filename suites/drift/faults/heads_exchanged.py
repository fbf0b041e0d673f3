"""Returns the last two groups of 64 channels in each other's place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "qkv"


def linear(x: Tensor, weight: Tensor, **out: Any) -> Tensor:
    y = right("linear")(x, weight, **out)
    return torch.cat([y[:, :-128], y[:, -64:], y[:, -128:-64]], -1)
