"""From hidden states to experts: the router's product and the choice, fused."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract
from minimax_m2.reference.router_gemm import router_gemm
from minimax_m2.reference.routing import routing


def router(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, top_k: int, renormalize: bool = True, scoring: str = "sigmoid",
    scale: float = 1.0, eps: float = 0.0, indices_dtype: torch.dtype = torch.int32,
    num_valid: Tensor | None = None, contract: Contract = EXACT,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute ``routing(router_gemm(x, weight), bias)``; ``bias`` is routing's, for selection only.

    x        [T, H];  weight [E, H] float32;  bias [E] float32 or None
    returns  weights [T, K] float32, ids [T, K]

    Contract: the fields of routing; ``logits`` is router_gemm's result, rounded once.
    """
    return routing(
        router_gemm(x, weight, contract=contract), bias, top_k=top_k, renormalize=renormalize, scoring=scoring,
        scale=scale, eps=eps, indices_dtype=indices_dtype, num_valid=num_valid, contract=contract,
    )  # fmt: skip
