"""Lets query head h read key/value head h mod Hk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "attention"


def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, *batch: Tensor, **sizes: Any) -> Tensor:
    heads, groups = q.shape[1], k_cache.shape[2]
    order = torch.arange(heads).view(-1, groups).T.flatten()
    return right("attention")(q[:, order], k_cache, v_cache, *batch, **sizes)[:, order.argsort()]
