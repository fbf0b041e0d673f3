"""The router's logits, in float32 whatever the model's dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract, rounded


def router_gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, contract: Contract = EXACT) -> Tensor:
    """Multiply the hidden states by the router's weight without ever rounding below float32.

        logits = float32(x) @ weight^T (+ bias)

    x       [T, H] bfloat16, float16 or float32
    weight  [E, H] float32; bias [E] float32 or None
    returns [T, E] float32 (float64 for a float64 x)

    Contract: ``logits``, the result: float32 in vLLM csrc/fp32_router_gemm.cu and SGLang's fp32 gate. In the model's
    dtype about 4 % of tokens choose other experts (sglang#33764), which is a defect, not a contract.
    """
    working = torch.promote_types(x.dtype, torch.float32)
    logits = x.to(working) @ weight.to(working).mT
    return rounded(logits if bias is None else logits + bias.to(working), contract.logits)
