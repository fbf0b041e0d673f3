"""Gates with the half that should be gated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "experts"


def pack_experts(w13: Tensor, w2: Tensor, **scales: Any) -> Any:
    gate, up = w13.chunk(2, 1)
    return right("pack_experts")(torch.cat([up, gate], 1), w2, **scales)


def experts(x: Tensor, packed: Any, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    return right("experts")(x, packed, weights, ids, **choice)
