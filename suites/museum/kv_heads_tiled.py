"""Gives query head h the key/value head h modulo Hk: tile for repeat_interleave."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "attention",
    "source": "https://github.com/ekzhang/jax-js/pull/180",
    "symptom": "wrong attention as soon as several query heads share a key",
    "check": "y:element",
    "tolerance": None,
}


def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, *places: Tensor, **more: Any) -> Tensor:
    Hq, Hk = q.shape[1], k_cache.shape[2]
    # right: order = torch.arange(Hq)
    order = torch.arange(Hq).view(-1, Hk).mT.flatten()
    return right("attention")(q[:, order], k_cache, v_cache, *places, **more)[:, order.argsort()]
