"""The recurrence of a gated delta net and its gates, in one call, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import gdn_update as update_schema
from minimax_m2.kernels.schema.rms_norm import check_output

extension.load("gdn_update")

# The binding checks what it reads, a decode step being shorter than the checks in Python; those say what was refused.
_gdn_update = torch.ops.minimax_m2.gdn_update.default

contract = {"exp_ulps": 1.1}


def gdn_update(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    A_log: Tensor,
    a: Tensor,
    b: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    state_index: Tensor,
    query_start: Tensor,
    *,
    scale: float,
    l2norm: bool = True,
) -> Tensor:
    """Run every sequence's tokens through its state, gates computed on the way.

        g = -exp(A_log) * softplus(a + dt_bias);  beta = sigmoid(b);  o = gated_delta_rule(q, k, v, g, beta, state, ...)

    q, k             [T, Hk, Dk] float32, bfloat16 or float16
    v                [T, Hv, Dv], dtype of q
    A_log, dt_bias   [Hv], each float32 or the dtype of q
    a, b             [T, Hv], dtype of q, row stride free
    state!           [slots, Hv, Dk, Dv] float32, written in place; strides of slots and heads free
    state_index      [B] int32 or int64; below 0: a padded sequence, whose outputs are 0, no state is read or written
    query_start      [B + 1] likewise, rising; rows outside it are padding, their outputs 0
    returns          o [T, Hv, Dv], dtype of v, contiguous

    The gates stay float32 between the parts. Otherwise as in gated_delta_rule: threads and other sequences change no
    bit.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above, and ValueError, before anything is
    written, for a slot outside the state or named twice and a query_start that falls or leaves the rows of q.
    """
    try:
        o = torch.empty(v.shape, dtype=v.dtype)
        _gdn_update(q, k, v, A_log, a, b, dt_bias, state, state_index, query_start, scale, l2norm, o)
    except schema.REFUSED:
        update_schema.check(q, k, v, A_log, a, b, dt_bias, state, state_index, query_start)
        raise
    return o


def gdn_update_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    A_log: Tensor,
    a: Tensor,
    b: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    state_index: Tensor,
    query_start: Tensor,
    o: Tensor,
    *,
    scale: float,
    l2norm: bool = True,
) -> None:
    """Do what ``gdn_update`` does, into ``o``, contiguous ``[T, Hv, Dv]``."""
    try:
        _gdn_update(q, k, v, A_log, a, b, dt_bias, state, state_index, query_start, scale, l2norm, o)
    except schema.REFUSED:
        update_schema.check(q, k, v, A_log, a, b, dt_bias, state, state_index, query_start)
        check_output("o", o, shape=tuple(v.shape), symbols="[T, Hv, Dv]", dtype=v.dtype, device=v.device)
        raise
