"""Takes sigmoid(-b) for sigmoid(b)."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "gdn_gating",
    "source": "https://github.com/sgl-project/sglang/pull/26634",
    "symptom": "beta's precision and sign (a class of reports on gated delta nets)",
    "check": "beta:element",
    "tolerance": None,
}


def gdn_gating(A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    g = right("gdn_gating")(A_log, a, b, dt_bias)[0]
    # right: exponent = -b.float()
    exponent = b.float()
    return g, (1 / (1 + torch.exp(exponent))).to(b.dtype)
