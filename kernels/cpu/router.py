"""Choose experts from hidden states on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import router as router_schema
from minimax_m2.kernels.schema import routing as routing_schema

extension.load("router")


def router(
    x: Tensor,
    weight: Tensor,
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
    """Compute ``routing(router_gemm(x, weight), bias)`` in one call; the logits are never a tensor.

    x        [T, H] bfloat16, float16 or float32, row stride free
    weight   [E, H] float32, E 1..1024; bias [E] float32 or None, for selection only
    returns  weights [T, K] float32, ids [T, K] indices_dtype, by descending score + bias, ties to the lower id

    The results have the bits of the two ops called one after the other. Rows from ``num_valid`` on are not multiplied.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above, and ValueError for a row
    in which some score + bias is NaN.
    """
    router_schema.check(x, weight, bias, top_k=top_k, scoring=scoring, indices_dtype=indices_dtype, num_valid=num_valid)

    weights = torch.empty(x.shape[0], top_k, dtype=torch.float32)
    ids = torch.empty(x.shape[0], top_k, dtype=indices_dtype)

    if x.shape[0] > 0:
        softmax = scoring == "softmax"
        torch.ops.minimax_m2.router(x, weight, bias, top_k, renormalize, softmax, scale, eps, num_valid, weights, ids)
    return weights, ids


def router_out(
    x: Tensor,
    weight: Tensor,
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
    """Do what ``router`` does, into ``weights`` and ``ids``, contiguous ``[T, K]``."""
    router_schema.check(x, weight, bias, top_k=top_k, scoring=scoring, indices_dtype=indices_dtype, num_valid=num_valid)
    routing_schema.check_outputs(weights, ids, shape=(x.shape[0], top_k), device=x.device)
    schema.expect_dtype("ids", ids, (indices_dtype,))

    if x.shape[0] > 0:
        softmax = scoring == "softmax"
        torch.ops.minimax_m2.router(x, weight, bias, top_k, renormalize, softmax, scale, eps, num_valid, weights, ids)
