"""Compute the router's logits in float32 on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import router_gemm as router_gemm_schema

extension.load("router_gemm")


def router_gemm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the hidden states by the router's weight: ``float32(x) @ weight^T (+ bias)``.

    x       [T, H] bfloat16, float16 or float32, row stride free
    weight  [E, H] float32, row stride free; bias [E] float32 or None
    returns [T, E] float32

    Products and sums are float32, in one order whatever T and the number of threads: a token's logits have the same
    bits alone and in any batch.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    router_gemm_schema.check(x, weight, bias)

    logits = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32)

    if x.shape[0] > 0:
        torch.ops.minimax_m2.router_gemm(x, weight, bias, logits)
    return logits


def router_gemm_out(x: Tensor, weight: Tensor, bias: Tensor | None, logits: Tensor) -> None:
    """Do what ``router_gemm`` does, into ``logits``, contiguous ``[T, E]`` float32."""
    router_gemm_schema.check(x, weight, bias)
    schema.expect_shape("logits", logits, (x.shape[0], weight.shape[0]), "[T, E]")
    schema.expect_dtype("logits", logits, (torch.float32,))
    schema.expect_contiguous("logits", logits)
    schema.expect_device("logits", logits, x.device)

    if x.shape[0] > 0:
        torch.ops.minimax_m2.router_gemm(x, weight, bias, logits)
