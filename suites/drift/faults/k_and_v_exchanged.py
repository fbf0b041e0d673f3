"""Returns the key heads where the value heads belong, as a wrong merge of q, k and v does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "qkv"


def linear(x: Tensor, weight: Tensor, **out: Any) -> Tensor:

    y = right("linear")(x, weight, **out)
    own = weight.shape[0] // 8
    return torch.cat([y[:, : -2 * own], y[:, -own:], y[:, -2 * own : -own]], -1)
