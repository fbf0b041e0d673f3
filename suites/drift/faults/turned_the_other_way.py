"""Rotates by the negative angle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "qk_norm_rope_cache"


def qk_norm_rope_cache(
    qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
    *written: Tensor, **sizes: Any,
) -> Tensor:  # fmt: skip
    cos, sin = cos_sin.chunk(2, -1)
    back = torch.cat([cos, -sin], -1)
    return right("qk_norm_rope_cache")(qkv, stats, q_weight, k_weight, back, positions, *written, **sizes)
