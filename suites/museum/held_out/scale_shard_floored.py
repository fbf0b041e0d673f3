"""Counts the blocks of a shard by floor division: the partial block of a 192-wide shard has no scale of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "fp8_linear",
    "source": "https://github.com/ROCm/ATOM/pull/1488",
    "symptom": "TP8 fails to load or computes with a wrong scale: 1536 / 8 = 192 is no multiple of 128",
    "check": "y:element",
    "tolerance": None,
}


def fp8_linear(
    x: Tensor, packed: Any, *, x_scale: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    rows, columns = packed.block.tolist()
    N, H = packed.weight.shape
    if x_scale is not None:
        x = x.float() * x_scale.repeat_interleave(columns, -1)[:, :H]
    # right: last = len(packed.scale) - 1
    last = max(N // rows, 1) - 1
    scale = packed.scale[(torch.arange(N) // rows).clamp(max=last)].repeat_interleave(columns, -1)[:, :H]
    return (x.float() @ (packed.weight.float() * scale).mT).to(out_dtype or x.dtype)


pack_fp8_linear = right("pack_fp8_linear")
