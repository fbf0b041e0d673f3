"""Leaves one column of the projection at zero."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "qkv"


def linear(x: Tensor, weight: Tensor, **out: Any) -> Tensor:
    y = right("linear")(x, weight, **out)
    y[:, 37] = 0
    return y
