"""Reads a strided activation as if its rows followed each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "block_quant",
    "source": "https://github.com/pytorch/FBGEMM/pull/2713",
    "symptom": "wrong codes for a non-contiguous activation",
    "check": "q:element",
    "tolerance": None,
}


def block_quant(x: Tensor, **format_: Any) -> tuple[Tensor, Tensor]:
    # right: rows = x
    rows = x.as_strided(x.shape, (x.shape[1], 1))
    return right("block_quant")(rows, **format_)
