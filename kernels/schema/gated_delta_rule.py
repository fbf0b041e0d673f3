"""Schema and host-side checks of ``gated_delta_rule``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

MAX_HEAD_DIM = 512

schema.define(
    "gated_delta_rule(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, Tensor(a!) state, Tensor state_index, "
    "Tensor query_start, float scale, bool l2norm, Tensor(b!) o) -> ()"
)


def check(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, state_index: Tensor, query_start: Tensor
) -> None:
    """Raise what the host can know about the arguments of ``gated_delta_rule``."""
    check_heads(q, k, v, state, state_index, query_start)
    for name, x, dtypes in (("g", g, (torch.float32,)), ("beta", beta, tuple({torch.float32: 0, q.dtype: 0}))):
        schema.expect_shape(name, x, tuple(v.shape[:2]), "[T, Hv]")
        schema.expect_dtype(name, x, dtypes)
        schema.expect_rows(name, x)
        schema.expect_device(name, x, q.device)


def check_heads(q: Tensor, k: Tensor, v: Tensor, state: Tensor, state_index: Tensor, query_start: Tensor) -> None:
    """Raise what the host can know about a recurrence, wherever its gates come from."""
    schema.expect_shape("q", q, (None, None, None), "[T, Hk, Dk]")
    num_tokens, key_heads, key_dim = q.shape
    schema.expect_shape("k", k, tuple(q.shape), "[T, Hk, Dk]")
    schema.expect_shape("v", v, (num_tokens, None, None), "[T, Hv, Dv]")
    heads, value_dim = v.shape[1:]
    schema.expect_range("head_k_dim", key_dim, 1, MAX_HEAD_DIM, "q is [T, Hk, Dk]; Qwen3.5 uses 128")
    if key_heads < 1 or heads < 1 or heads % key_heads or value_dim < 1:
        raise ValueError(
            f"q has {key_heads} heads and v is {list(v.shape)}; expected positive sizes, and key heads that divide the "
            "value heads"
        )
    schema.expect_dtype("q", q, schema.FLOATS)
    for name, x in (("k", k), ("v", v)):
        schema.expect_dtype(name, x, (q.dtype,))
    schema.expect_shape("state", state, (None, heads, key_dim, value_dim), "[slots, Hv, Dk, Dv]")
    schema.expect_dtype("state", state, (torch.float32,))
    if state.numel() > 0 and not state[0, 0].is_contiguous():
        raise ValueError(f"state has strides {list(state.stride())}, expected dense heads [Dk, Dv]; call .contiguous()")
    schema.expect_shape("state_index", state_index, (None,), "[B]")
    schema.expect_shape("query_start", query_start, (state_index.shape[0] + 1,), "[B + 1]")
    for name, x in (("state_index", state_index), ("query_start", query_start)):
        schema.expect_dtype(name, x, schema.INDICES)
        schema.expect_contiguous(name, x)
    for name, x in (("q", q), ("k", k), ("v", v)):
        schema.expect_rows(name, x)
    for name, x in (("k", k), ("v", v), ("state", state), ("state_index", state_index), ("query_start", query_start)):
        schema.expect_device(name, x, q.device)
