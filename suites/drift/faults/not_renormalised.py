"""Does not divide the weights by their sum."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "router"


def router(x: Tensor, weight: Tensor, bias: Tensor | None, **choice: Any) -> tuple[Tensor, Tensor]:
    return right("router")(x, weight, bias, **(choice | {"renormalize": False}))
