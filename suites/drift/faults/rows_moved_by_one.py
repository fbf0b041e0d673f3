"""Writes each token's row to the next token's place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "o_proj"


def linear(x: Tensor, weight: Tensor, **out: Any) -> Tensor:
    return right("linear")(x, weight, **out).roll(1, 0) if len(x) > 1 else -right("linear")(x, weight, **out)
