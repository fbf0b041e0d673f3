"""Attend over a paged cache on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import attention as attention_schema

extension.load("attention")

# The weights stay float32 up to the second product; flash kernels of GPUs cast them to the model's dtype.
contract = {"probabilities": None}


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    *,
    scale: float,
    max_query_len: int,
    max_seq_len: int,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> Tensor:
    """Attend from each sequence's new tokens to its cached keys, the last query to all of them.

    q                 [T, Hq, D] bfloat16, float16 or float32; head h reads key/value head h // (Hq/Hk)
    k_cache, v_cache  [pages, page, Hk, D], dtype of q or float8_e4m3fn, read times k_scale, v_scale (None: 1)
    block_table       [B, max pages] int32 or int64; entries beyond a sequence's length are never read
    seq_lens          [B] int32 or int64, the new tokens included; query_start [B + 1] likewise, rising
    returns           [T, Hq, D], dtype of q; rows without keys and rows outside query_start are 0

    Strides are free but for the last dimension. Scores, weights and sums are float32, in one order whatever the
    number of threads.

    Raises ValueError or TypeError for shapes, dtypes and strides outside the above, and ValueError for lengths beyond
    the maxima, a query_start that falls, and a page outside the cache.
    """
    attention_schema.check(q, k_cache, v_cache, block_table, seq_lens, query_start, k_scale=k_scale, v_scale=v_scale)

    out = torch.empty(q.shape, dtype=q.dtype)

    _launch(
        q, k_cache, v_cache, block_table, seq_lens, query_start, out,
        scale, max_query_len, max_seq_len, k_scale, v_scale,
    )  # fmt: skip
    return out


def attention_out(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    out: Tensor,
    *,
    scale: float,
    max_query_len: int,
    max_seq_len: int,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> None:
    """Do what ``attention`` does, into ``out``, contiguous ``[T, Hq, D]``."""
    attention_schema.check(q, k_cache, v_cache, block_table, seq_lens, query_start, k_scale=k_scale, v_scale=v_scale)
    attention_schema.check_output(out, q)

    _launch(
        q, k_cache, v_cache, block_table, seq_lens, query_start, out,
        scale, max_query_len, max_seq_len, k_scale, v_scale,
    )  # fmt: skip


def _launch(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor,
    out: Tensor, scale: float, max_query_len: int, max_seq_len: int, k_scale: Tensor | float | None,
    v_scale: Tensor | float | None,
) -> None:  # fmt: skip
    k_scale, v_scale = (attention_schema.scale_tensor(scale, q.device) for scale in (k_scale, v_scale))
    if q.shape[0] > 0:
        torch.ops.minimax_m2.attention(
            q, k_cache, v_cache, block_table, seq_lens, query_start, scale, max_query_len, max_seq_len,
            k_scale, v_scale, out,
        )  # fmt: skip
