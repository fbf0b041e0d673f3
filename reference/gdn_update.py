"""The recurrence of a gated delta net (Qwen3.5) and its gates, fused."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.reference.contract import EXACT, Contract
from minimax_m2.reference.gated_delta_rule import gated_delta_rule
from minimax_m2.reference.gdn_gating import gdn_gating


def gdn_update(
    q: Tensor, k: Tensor, v: Tensor, A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, state: Tensor,
    state_index: Tensor, query_start: Tensor, *, scale: float, l2norm: bool = True, contract: Contract = EXACT,
) -> Tensor:  # fmt: skip
    """Run every sequence's tokens through its state, with the gates of ``gdn_gating(A_log, a, b, dt_bias)``.

    Shapes as in gated_delta_rule and gdn_gating; state! is written in place; returns o [T, Hv, Dv], dtype of v.

    Contract: the fields of both; ``beta`` is None where the fused kernel keeps it in float32.
    """
    g, beta = gdn_gating(A_log, a, b, dt_bias, contract=contract)
    return gated_delta_rule(
        q, k, v, g, beta, state, state_index, query_start, scale=scale, l2norm=l2norm, contract=contract
    )
