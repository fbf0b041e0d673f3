"""Route tokens to experts, and pack what was chosen, on a device to which kernels are launched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.launched import Launch
from minimax_m2.kernels.schema import routing as routing_schema


def functions(
    launch: Launch, launch_pack: Launch, launch_unpack: Launch
) -> tuple[
    Callable[..., tuple[Tensor, Tensor]],
    Callable[..., None],
    Callable[..., Tensor],
    Callable[..., tuple[Tensor, Tensor]],
]:
    """``routing``, ``routing_out``, ``pack_routing``, ``unpack_routing``."""

    def routing(
        logits: Tensor, bias: Tensor | None, *, top_k: int, renormalize: bool = True, scoring: str = "sigmoid",
        scale: float = 1.0, eps: float = 0.0, indices_dtype: torch.dtype = torch.int32, num_valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Select experts by score plus bias; weigh them by score alone.

            s = sigmoid(logits) or softmax(logits);  ids = the top_k largest of s + bias
            w = s[ids];  w = w / (sum(w) + eps) if renormalize;  w = w * scale

        logits     [T, E] float32, bfloat16 or float16, row stride free; E 1..1024
        bias       [E] float32 or None, for selection only
        num_valid  int32 scalar tensor or None: rows from there on get id -1 and weight 0
        returns    weights [T, K] float32, ids [T, K] indices_dtype, by descending score + bias, ties to the lower id

        All in float32. A row in which some score + bias is NaN gets ids -1 and NaN weights.

        Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
        """
        routing_schema.check(
            logits, bias, top_k=top_k, scoring=scoring, indices_dtype=indices_dtype, num_valid=num_valid
        )

        num_tokens = logits.shape[0]
        weights = torch.empty((num_tokens, top_k), dtype=torch.float32, device=logits.device)
        ids = torch.empty((num_tokens, top_k), dtype=indices_dtype, device=logits.device)

        if num_tokens > 0:
            launch(logits, bias, top_k, weights, ids, renormalize, scoring == "softmax", scale, eps, num_valid)
        return weights, ids

    def routing_out(
        logits: Tensor, bias: Tensor | None, weights: Tensor, ids: Tensor, *, top_k: int, renormalize: bool = True,
        scoring: str = "sigmoid", scale: float = 1.0, eps: float = 0.0, indices_dtype: torch.dtype = torch.int32,
        num_valid: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Do what ``routing`` does, into ``weights`` and ``ids``, contiguous ``[T, K]``."""
        routing_schema.check(
            logits, bias, top_k=top_k, scoring=scoring, indices_dtype=indices_dtype, num_valid=num_valid
        )
        routing_schema.check_outputs(weights, ids, shape=(logits.shape[0], top_k), device=logits.device)
        schema.expect_dtype("ids", ids, (indices_dtype,))

        if logits.shape[0] > 0:
            launch(logits, bias, top_k, weights, ids, renormalize, scoring == "softmax", scale, eps, num_valid)

    def pack_routing(weights: Tensor, ids: Tensor, *, expert_start: int = 0) -> Tensor:
        """Pack a weight and its expert into one int32: ``(id - expert_start) << 16 | bits of bfloat16(weight)``.

        weights [T, K] float32, ids [T, K] int32 or int64, contiguous; returns [T, K] int32

        The weight is rounded to nearest even. An id of -1, or below ``expert_start``, has the field 0xffff: the packed
        value is negative, its weight bits stay.
        """
        routing_schema.check_pack(weights, ids, expert_start=expert_start)

        packed = torch.empty(ids.shape, dtype=torch.int32, device=ids.device)

        if packed.numel() > 0:
            launch_pack(weights, ids, expert_start, packed)
        return packed

    def unpack_routing(packed: Tensor, *, expert_start: int = 0) -> tuple[Tensor, Tensor]:
        """Undo ``pack_routing``: weights as float32 of the bfloat16, ids int32, -1 for negative packed values."""
        routing_schema.check_unpack(packed, expert_start=expert_start)

        weights = torch.empty(packed.shape, dtype=torch.float32, device=packed.device)
        ids = torch.empty(packed.shape, dtype=torch.int32, device=packed.device)

        if packed.numel() > 0:
            launch_unpack(packed, expert_start, weights, ids)
        return weights, ids

    return routing, routing_out, pack_routing, unpack_routing
