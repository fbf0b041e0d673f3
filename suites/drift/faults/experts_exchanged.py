"""Holds the weights of experts 6 and 7 in each other's place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "experts"


def pack_experts(w13: Tensor, w2: Tensor, **scales: Any) -> Any:
    order = list(range(len(w13)))
    order[6], order[7] = 7, 6
    return right("pack_experts")(w13[order], w2[order], **scales)


def experts(x: Tensor, packed: Any, weights: Tensor, ids: Tensor, **choice: Any) -> Tensor:
    return right("experts")(x, packed, weights, ids, **choice)
