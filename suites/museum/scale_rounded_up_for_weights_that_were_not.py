"""Rounds scales up to powers of two, for weights that were quantised with the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right
from minimax_m2.reference.block_quant import power_of_two_above

EXHIBIT = {
    "subject": "fp8_linear",
    "source": "https://github.com/sgl-project/sglang/pull/22300",
    "symptom": "accuracy drops on the fallback path",
    "check": "y:element",
    "tolerance": None,
}


def fp8_linear(x: Tensor, packed: Any, **more: Any) -> Tensor:
    # right: scale = packed.scale
    scale = power_of_two_above(packed.scale)
    return right("fp8_linear")(x, packed._replace(scale=scale), **more)


pack_fp8_linear = right("pack_fp8_linear")
