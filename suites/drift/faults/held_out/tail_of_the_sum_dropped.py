"""Adds up all but the last eight inputs of o_proj."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

STEP = "o_proj"


def linear(x: Tensor, weight: Tensor, **out: Any) -> Tensor:
    return right("linear")(x[:, :-8], weight[:, :-8], **out)
