"""The recurrence of a gated delta net on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import gated_delta_rule as rule_schema
from minimax_m2.kernels.schema.rms_norm import check_output

extension.load("gated_delta_rule")

# The binding checks what it reads, a decode step being shorter than the checks in Python; those say what was refused.
_gated_delta_rule = torch.ops.minimax_m2.gated_delta_rule.default

contract = {"exp_ulps": 1.1}


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    state_index: Tensor,
    query_start: Tensor,
    *,
    scale: float,
    l2norm: bool = True,
) -> Tensor:
    """Run every sequence's tokens through its state, which is kept for the next call.

        S = exp(g) * S;  S = S + k (beta * (v - k^T S))^T;  o = scale * q^T S        one token of one value head

    q, k         [T, Hk, Dk] float32, bfloat16 or float16, x / sqrt(sum(x^2) + 1e-6) if l2norm; value head h reads key
                 head h // (Hv/Hk)
    v            [T, Hv, Dv], dtype of q;  g [T, Hv] float32;  beta [T, Hv] float32 or dtype of q
    state!       [slots, Hv, Dk, Dv] float32, written in place; strides of slots and heads free
    state_index  [B] int32 or int64; below 0: a padded sequence, whose outputs are 0, no state is read or written
    query_start  [B + 1] likewise, rising; rows outside it are padding, their outputs 0
    returns      o [T, Hv, Dv], dtype of v, contiguous

    Strides of tokens and heads are free, so q, k and v may be views of a projection. Four tokens of a sequence are
    taken at once. Everything between the inputs and o is float32; threads and other sequences change no bit.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above, and ValueError, before anything is
    written, for a slot outside the state or named twice and a query_start that falls or leaves the rows of q.
    """
    try:
        o = torch.empty(v.shape, dtype=v.dtype)
        _gated_delta_rule(q, k, v, g, beta, state, state_index, query_start, scale, l2norm, o)
    except schema.REFUSED:
        rule_schema.check(q, k, v, g, beta, state, state_index, query_start)
        raise
    return o


def gated_delta_rule_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    state_index: Tensor,
    query_start: Tensor,
    o: Tensor,
    *,
    scale: float,
    l2norm: bool = True,
) -> None:
    """Do what ``gated_delta_rule`` does, into ``o``, contiguous ``[T, Hv, Dv]``."""
    try:
        _gated_delta_rule(q, k, v, g, beta, state, state_index, query_start, scale, l2norm, o)
    except schema.REFUSED:
        rule_schema.check(q, k, v, g, beta, state, state_index, query_start)
        check_output("o", o, shape=tuple(v.shape), symbols="[T, Hv, Dv]", dtype=v.dtype, device=v.device)
        raise
