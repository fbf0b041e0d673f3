"""A dense layer without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract, rounded


def linear(x: Tensor, weight: Tensor, *, out_dtype: torch.dtype | None = None, contract: Contract = EXACT) -> Tensor:
    """Multiply by a weight stored one row per output: ``y = x @ weight^T``.

    x        [T, H]
    weight   [N, H]
    returns  [T, N], dtype of x unless out_dtype

    Contract: ``out``, the result; products and sums are the budget's accumulation.
    """
    return in_dtype(rounded(x @ weight.to(x.dtype).mT, contract.out), out_dtype)


def in_dtype(y: Tensor, out_dtype: torch.dtype | None) -> Tensor:
    """Cast a result to the dtype its caller asked for, but leave a float64 reading in float64."""
    return y if out_dtype is None or y.dtype == torch.float64 else y.to(out_dtype)
