"""Schema and host-side checks of ``gdn_update``."""

from __future__ import annotations

from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.schema import gated_delta_rule, gdn_gating

schema.define(
    "gdn_update(Tensor q, Tensor k, Tensor v, Tensor A_log, Tensor a, Tensor b, Tensor dt_bias, Tensor(a!) state, "
    "Tensor state_index, Tensor query_start, float scale, bool l2norm, Tensor(b!) o) -> ()"
)


def check(
    q: Tensor, k: Tensor, v: Tensor, A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, state: Tensor,
    state_index: Tensor, query_start: Tensor,
) -> None:  # fmt: skip
    """Raise what the host can know about the arguments of ``gdn_update``."""
    gated_delta_rule.check_heads(q, k, v, state, state_index, query_start)
    schema.expect_shape("a", a, tuple(v.shape[:2]), "[T, Hv]")
    schema.expect_dtype("a", a, (q.dtype,))
    schema.expect_device("a", a, q.device)
    gdn_gating.check(A_log, a, b, dt_bias)
