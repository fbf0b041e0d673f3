"""Compute logits over the vocabulary on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import lm_head as lm_head_schema

extension.load("lm_head")


def lm_head(x: Tensor, weight: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> Tensor:
    """Multiply the chosen rows by the head's weight: ``logits = x[rows] @ weight[:vocab_size]^T``.

    x        [T, H] bfloat16, float16 or float32, row stride free
    weight   [V or more, H], dtype of x, row stride free; rows from ``vocab_size`` on are never read
    rows     [N] int32 or int64, contiguous, or None: all
    returns  [N, vocab_size] float32

    Sums are float32, in one order whatever N and the number of threads, and never rounded.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above, and ValueError for a row of x
    that does not exist.
    """
    lm_head_schema.check(x, weight, rows=rows, vocab_size=vocab_size)

    num_rows = x.shape[0] if rows is None else rows.shape[0]
    logits = torch.empty((num_rows, vocab_size), dtype=torch.float32)

    if num_rows > 0:
        torch.ops.minimax_m2.lm_head(x, weight, rows, logits)
    return logits


def lm_head_out(x: Tensor, weight: Tensor, logits: Tensor, *, rows: Tensor | None = None, vocab_size: int) -> None:
    """Do what ``lm_head`` does, into ``logits``, contiguous ``[N, vocab_size]`` float32."""
    lm_head_schema.check(x, weight, rows=rows, vocab_size=vocab_size)
    num_rows = x.shape[0] if rows is None else rows.shape[0]
    lm_head_schema.check_output(logits, shape=(num_rows, vocab_size), device=x.device)

    if num_rows > 0:
        torch.ops.minimax_m2.lm_head(x, weight, rows, logits)
