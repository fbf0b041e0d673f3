"""Residual addition, RMSNorm and quantisation of its result, fused."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.reference.add_rms_norm import add_rms_norm
from minimax_m2.reference.block_quant import block_quant
from minimax_m2.reference.contract import EXACT, Contract


def add_rms_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, group: int = 128, contract: Contract = EXACT
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise ``y`` of ``y, residual = add_rms_norm(x, residual, weight)`` in groups of a row.

    x, residual  [T, H]
    weight       [H]
    returns      q [T, H] e4m3, scale [T, ceil(H/group)] float32, residual [T, H] dtype of x

    Contract: the fields of add_rms_norm and block_quant; ``out``, y before it is quantised, is None where the fused
    kernel keeps it in float32 and the output dtype where it must equal the two kernels it replaces.
    """
    y, residual = add_rms_norm(x, residual, weight, eps=eps, contract=contract)
    q, scale = block_quant(y, group=group, contract=contract)
    return q, scale, residual
