"""Route tokens to experts on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import routing as routing_schema

extension.load("routing")

# The binding checks what it reads, a decode step being shorter than the checks in Python; those say what was refused.
# Arguments that have the schema's default are not passed, for the same reason.
_routing = torch.ops.minimax_m2.routing.default


def routing(
    logits: Tensor,
    bias: Tensor | None,
    *,
    top_k: int,
    renormalize: bool = True,
    scoring: str = "sigmoid",
    scale: float = 1.0,
    eps: float = 0.0,
    indices_dtype: torch.dtype = torch.int32,
    num_valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Select experts by score plus bias; weigh them by score alone.

        s = sigmoid(logits) or softmax(logits);  ids = the top_k largest of s + bias
        w = s[ids];  w = w / (sum(w) + eps) if renormalize;  w = w * scale

    logits     [T, E] float32, bfloat16 or float16, row stride free; E 1..1024
    bias       [E] float32 or None, for selection only
    num_valid  int32 scalar tensor or None: rows from there on get id -1 and weight 0
    returns    weights [T, K] float32, ids [T, K] indices_dtype, by descending score + bias, ties to the lower id

    A sum of 0 with eps=0 gives NaN weights, as plain torch does. Scores are float32, sum and quotient float64: a
    weight's relative error is below 6 * 2^-23 under sigmoid; softmax adds |logit - max| * 2^-24 for the rounded
    difference and its float32 sum. The number of threads changes no bit.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above, and ValueError for a row
    in which some score + bias is NaN.
    """
    try:
        weights = torch.empty(logits.shape[0], top_k, dtype=torch.float32)
        ids = torch.empty(logits.shape[0], top_k, dtype=indices_dtype)
        if renormalize and scoring == "sigmoid" and scale == 1.0 and eps == 0.0 and num_valid is None:
            _routing(logits, bias, top_k, weights, ids)
        else:
            softmax = routing_schema.IS_SOFTMAX[scoring]
            _routing(logits, bias, top_k, weights, ids, renormalize, softmax, scale, eps, num_valid)
    except schema.REFUSED:
        routing_schema.check(
            logits, bias, top_k=top_k, scoring=scoring, indices_dtype=indices_dtype, num_valid=num_valid
        )
        raise
    return weights, ids


def routing_out(
    logits: Tensor,
    bias: Tensor | None,
    weights: Tensor,
    ids: Tensor,
    *,
    top_k: int,
    renormalize: bool = True,
    scoring: str = "sigmoid",
    scale: float = 1.0,
    eps: float = 0.0,
    indices_dtype: torch.dtype = torch.int32,
    num_valid: Tensor | None = None,
) -> None:
    """Do what ``routing`` does, into ``weights`` and ``ids``, contiguous ``[T, K]``."""
    if ids.dtype is not indices_dtype:
        schema.expect_dtype("ids", ids, (indices_dtype,))
    try:
        if renormalize and scoring == "sigmoid" and scale == 1.0 and eps == 0.0 and num_valid is None:
            _routing(logits, bias, top_k, weights, ids)
        else:
            softmax = routing_schema.IS_SOFTMAX[scoring]
            _routing(logits, bias, top_k, weights, ids, renormalize, softmax, scale, eps, num_valid)
    except schema.REFUSED:
        routing_schema.check(
            logits, bias, top_k=top_k, scoring=scoring, indices_dtype=indices_dtype, num_valid=num_valid
        )
        routing_schema.check_outputs(weights, ids, shape=(logits.shape[0], top_k), device=logits.device)
        raise


def pack_routing(weights: Tensor, ids: Tensor, *, expert_start: int = 0) -> Tensor:
    """Pack a weight and its expert into one int32: ``(id - expert_start) << 16 | bits of bfloat16(weight)``.

    weights [T, K] float32, ids [T, K] int32 or int64, contiguous; returns [T, K] int32

    The weight is rounded to nearest even. An id of -1, or below ``expert_start``, has the field 0xffff: the packed
    value is negative, its weight bits stay.

    Raises ValueError for an id below -1 or more than 32767 above ``expert_start``.
    """
    routing_schema.check_pack(weights, ids, expert_start=expert_start)

    packed = torch.empty(ids.shape, dtype=torch.int32)

    if packed.numel() > 0:
        torch.ops.minimax_m2.pack_routing(weights, ids, expert_start, packed)
    return packed


def unpack_routing(packed: Tensor, *, expert_start: int = 0) -> tuple[Tensor, Tensor]:
    """Undo ``pack_routing``: weights as float32 of the bfloat16, ids int32, -1 for negative packed values."""
    routing_schema.check_unpack(packed, expert_start=expert_start)

    weights = torch.empty(packed.shape, dtype=torch.float32)
    ids = torch.empty(packed.shape, dtype=torch.int32)

    if packed.numel() > 0:
        torch.ops.minimax_m2.unpack_routing(packed, expert_start, weights, ids)
    return weights, ids
