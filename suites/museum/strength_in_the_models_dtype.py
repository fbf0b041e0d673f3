"""Computes beta with scalars of the model's dtype, each step rounded, where the fused update promises float32."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "gdn_update",
    "source": "https://github.com/sgl-project/sglang/pull/26634",
    "symptom": "a state that keeps a little too much or too little of every token",
    "check": "state:element",
    "tolerance": None,
}


def gdn_update(
    q: Tensor, k: Tensor, v: Tensor, A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, state: Tensor,
    state_index: Tensor, query_start: Tensor, *, scale: float, l2norm: bool = True,
) -> Tensor:  # fmt: skip
    g = right("gdn_gating")(A_log, a, b, dt_bias)[0]
    # right: beta = torch.sigmoid(b.float())
    beta = (1 / (1 + torch.exp(-b))).float()
    sequences = (state, state_index, query_start)
    return right("gated_delta_rule")(q, k, v, g, beta, *sequences, scale=scale, l2norm=l2norm)
