"""Returns 1.02 times the projection."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "o_proj"


def linear(x: Tensor, weight: Tensor, **out: Any) -> Tensor:
    return (right("linear")(x.double(), weight.double(), **out) * 1.02).to(x.dtype)
