"""Gates of a gated delta net (Qwen3.5): how much state a token keeps, and how much of its value it writes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from minimax_m2.reference.contract import EXACT, Contract, rounded


def gdn_gating(
    A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, *, contract: Contract = EXACT
) -> tuple[Tensor, Tensor]:
    """Turn a head's projections into its decay's logarithm and its writing strength.

        g = -exp(A_log) * softplus(a + dt_bias);  beta = sigmoid(b)

    A_log, dt_bias  [Hv], each float32 or the dtype of a
    a, b            [T, Hv]
    returns         g [T, Hv] float32, at most 0: the state decays by exp(g); beta [T, Hv], dtype of b

    Contract:
        exp_b  exp(-b) inside the sigmoid, and 1 + exp(-b). Model dtype: SGLang's scalars, whose std::exp of a BFloat16,
               and its sum with 1, are one (sgl-kernel/csrc/cpu/mamba/fla.cpp: the tail of fused_gdn_gating_kernel_impl,
               fused_sigmoid_gating_delta_rule_update_kernel_impl); None: its vectors and others.
        beta   the result. Model dtype: SGLang; float32: transformers' torch path at float32 weights.
    """
    g = -torch.exp(A_log) * softplus(a + dt_bias)
    if contract.exp_b is None:
        beta = torch.sigmoid(b)
    else:
        beta = 1 / rounded(1 + rounded(torch.exp(-b), contract.exp_b), contract.exp_b)
    return g, rounded(beta, contract.beta)
