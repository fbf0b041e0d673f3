"""Schema and host-side checks of ``attention``."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

MAX_HEAD_DIM = 512

schema.define(
    "attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seq_lens, Tensor query_start, "
    "float scale, SymInt max_query_len, SymInt max_seq_len, Tensor? k_scale, Tensor? v_scale, Tensor(a!) out) -> ()"
)


def check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    *,
    k_scale: Tensor | float | None,
    v_scale: Tensor | float | None,
) -> None:
    """Raise what the host can know about the arguments of ``attention``."""
    schema.expect_shape("q", q, (None, None, None), "[T, Hq, D]")
    schema.expect_dtype("q", q, schema.FLOATS)
    schema.expect_rows("q", q)
    heads, head_dim = q.shape[1:]
    schema.expect_range("head_dim", head_dim, 1, MAX_HEAD_DIM, "q is [T, Hq, D]; MiniMax-M2 uses 128")
    schema.expect_shape("k_cache", k_cache, (None, None, None, head_dim), "[pages, page, Hk, D]")
    schema.expect_shape("v_cache", v_cache, tuple(k_cache.shape), "k_cache's [pages, page, Hk, D]")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        schema.expect_dtype(name, cache, (q.dtype, torch.float8_e4m3fn))
        schema.expect_rows(name, cache)
    schema.expect_dtype("v_cache", v_cache, (k_cache.dtype,))
    kv_heads = k_cache.shape[2]
    if k_cache.shape[1] < 1 or kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise ValueError(
            f"q has {heads} heads and k_cache is {list(k_cache.shape)}; expected a page of at least one slot and a "
            "positive number of query heads that the key/value heads divide"
        )
    sequences = seq_lens.shape[0] if seq_lens.dim() == 1 else None
    schema.expect_shape("block_table", block_table, (sequences, None), "[B, max pages]")
    schema.expect_rows("block_table", block_table)
    schema.expect_shape("seq_lens", seq_lens, (block_table.shape[0],), "[B]")
    schema.expect_shape("query_start", query_start, (block_table.shape[0] + 1,), "[B + 1]")
    for name, x in (("block_table", block_table), ("seq_lens", seq_lens), ("query_start", query_start)):
        schema.expect_dtype(name, x, schema.INDICES)
        schema.expect_device(name, x, q.device)
    schema.expect_contiguous("seq_lens", seq_lens)
    schema.expect_contiguous("query_start", query_start)
    schema.expect_device("k_cache", k_cache, q.device)
    schema.expect_device("v_cache", v_cache, q.device)
    check_scale("k_scale", k_scale, q.device)
    check_scale("v_scale", v_scale, q.device)


def check_scale(name: str, scale: Tensor | float | None, device: torch.device) -> None:
    """Raise unless a cache's scale is one number."""
    if isinstance(scale, Tensor):
        schema.expect_dtype(name, scale, (torch.float32, torch.float64))
        schema.expect_device(name, scale, device)
        if scale.numel() != 1:
            raise ValueError(f"{name} has {scale.numel()} elements, expected one scale a cache; pass a scalar tensor")


def check_output(out: Tensor, q: Tensor) -> None:
    """Raise what the host can know about the tensor that ``attention_out`` fills."""
    schema.expect_shape("out", out, tuple(q.shape), "[T, Hq, D]")
    schema.expect_dtype("out", out, (q.dtype,))
    schema.expect_contiguous("out", out)
    schema.expect_device("out", out, q.device)


def scale_tensor(scale: Tensor | float | None, device: torch.device) -> Tensor | None:
    """The dispatcher knows one optional type an argument; float64 keeps a Python float's digits."""
    if scale is None or isinstance(scale, Tensor):
        return scale
    return torch.full((), scale, dtype=torch.float64, device=device)
