"""Compute logits over the vocabulary on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minimax_m2.kernels.gpu.dense_tile import dense_product
from minimax_m2.kernels.gpu.launch import registered
from minimax_m2.kernels.gpu.linear import tensor_core
from minimax_m2.kernels.schema import lm_head as lm_head_schema


def contract(case: Mapping[str, Any]) -> dict[str, Any]:
    """As ``linear`` multiplies; the logits stay float32."""
    return tensor_core(case["N"], case["H"], case["dtype"])


_call = registered("lm_head", dense_product)


def lm_head(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
    """Multiply the chosen rows by the head's weight: ``logits = x[rows] @ weight[:vocab_size]^T``.

    x        [T, H] bfloat16, float16 or float32, row stride free
    weight   [V or more, H], dtype of x, row stride free; rows from ``vocab_size`` on are never read
    rows     [N] int32 or int64, contiguous, or None: all; a row that x does not have gives NaN logits
    returns  [N, vocab_size] float32

    Sums are float32, in an order that hangs on the shapes alone, and never rounded.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    lm_head_schema.check(x, weight, rows=rows, vocab_size=vocab_size)

    num_rows = x.shape[0] if rows is None else rows.shape[0]
    logits = torch.empty((num_rows, vocab_size), dtype=torch.float32, device=x.device)

    if num_rows > 0:
        _call(x, weight, rows, logits)
    return logits


def lm_head_out(x: Tensor, weight: Tensor, logits: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> None:
    """Do what ``lm_head`` does, into ``logits``, contiguous ``[N, vocab_size]`` float32."""
    lm_head_schema.check(x, weight, rows=rows, vocab_size=vocab_size)
    num_rows = x.shape[0] if rows is None else rows.shape[0]
    lm_head_schema.check_output(logits, shape=(num_rows, vocab_size), device=x.device)

    if num_rows > 0:
        _call(x, weight, rows, logits)
