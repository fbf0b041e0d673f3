"""Quantise activations to e4m3 in groups along a row, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import block_quant as block_quant_schema

extension.load("block_quant")


def block_quant(x: Tensor, *, group: int = 128, scale_format: str = "float32") -> tuple[Tensor, Tensor]:
    """Scale each group of a row so that its largest magnitude is 448, and round to e4m3.

        scale = max(absmax(group), 1e-10) / 448;  q = e4m3(x / scale)

    x        [T, H] float32, bfloat16 or float16, row stride free
    returns  q [T, H] e4m3, scale [T, ceil(H/group)] float32, contiguous

    Quotients are divided, not multiplied by a reciprocal, and rounded to nearest even. ``scale_format="ue8m0"`` rounds
    the scale up to a power of two. A NaN makes its group's scale and codes NaN.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    block_quant_schema.check(x, group=group, scale_format=scale_format)

    q, scale = block_quant_schema.allocated(*x.shape, group=group, dtype=torch.float8_e4m3fn, device=x.device)

    if q.numel() > 0:
        torch.ops.minimax_m2.block_quant(x, group, scale_format == "ue8m0", q, scale)
    return q, scale


def block_quant_out(x: Tensor, q: Tensor, scale: Tensor, *, group: int = 128, scale_format: str = "float32") -> None:
    """Do what ``block_quant`` does, into contiguous ``q`` and ``scale``."""
    block_quant_schema.check(x, group=group, scale_format=scale_format)
    block_quant_schema.check_outputs(
        q, scale, shape=tuple(x.shape), symbol="H", group=group, dtype=torch.float8_e4m3fn, device=x.device
    )

    if q.numel() > 0:
        torch.ops.minimax_m2.block_quant(x, group, scale_format == "ue8m0", q, scale)
