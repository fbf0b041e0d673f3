"""Look up rows of the embedding table on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema
from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import embedding as embedding_schema

extension.load("embedding")

# The binding checks what it reads; the checks in Python say what was refused.
_embedding = torch.ops.minimax_m2.embedding.default


def embedding(ids: Tensor, weight: Tensor, *, vocab_start: int = 0) -> Tensor:
    """Pick ``weight[id - vocab_start]``; ids outside the shard give rows of zeros, to be summed over ranks.

    ids      [T] int32 or int64
    weight   [V of the shard, H] float32, bfloat16 or float16, row stride free: rows vocab_start .. vocab_start + V - 1
    returns  [T, H], dtype of weight, the same bits

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above.
    """
    try:
        rows = torch.empty(ids.shape[0], weight.shape[1], dtype=weight.dtype)
        _embedding(ids, weight, vocab_start, rows)
    except schema.REFUSED:
        embedding_schema.check(ids, weight, vocab_start=vocab_start)
        raise
    return rows


def embedding_out(ids: Tensor, weight: Tensor, rows: Tensor, *, vocab_start: int = 0) -> None:
    """Do what ``embedding`` does, into ``rows``, contiguous ``[T, H]``."""
    try:
        _embedding(ids, weight, vocab_start, rows)
    except schema.REFUSED:
        embedding_schema.check(ids, weight, vocab_start=vocab_start)
        embedding_schema.check_output(rows, ids=ids, weight=weight)
        raise
