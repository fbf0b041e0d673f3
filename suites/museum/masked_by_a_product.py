"""Masks by a product with 0, so that NaN behind a sequence's end gets through."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.museum import right

EXHIBIT = {
    "subject": "attention",
    "source": "https://github.com/sgl-project/sglang/issues/36207",
    "symptom": "a poisoned padding slot is read by masked rows: non-deterministic garbage",
    "check": "not a number",
    "tolerance": None,
}


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor, **more: Any
) -> Tensor:
    y = right("attention")(q, k_cache, v_cache, block_table, seq_lens, query_start, **more)
    page = v_cache.shape[1]
    for b, length in enumerate(seq_lens.tolist()):
        last = v_cache[block_table[b, : -(-length // page)].long()].float().flatten(0, 1)[length:]
        # right: weighed = (last[:0] * 0).sum()
        weighed = (last * 0).sum()
        y[query_start[b] : query_start[b + 1]] += weighed.to(y.dtype)
    return y
