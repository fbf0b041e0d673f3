"""Schema and host-side checks of ``kv_cache``, and of the cache in the fusion that writes it."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels import schema

CACHES = (*schema.FLOATS, torch.float8_e4m3fn)

schema.define(
    "kv_cache(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, Tensor? k_scale, "
    "Tensor? v_scale) -> ()"
)


def check(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    """Raise what the host can know about the arguments of ``kv_cache``."""
    schema.expect_shape("k", k, (None, None, None), "[T, Hk, D]")
    schema.expect_dtype("k", k, schema.FLOATS)
    schema.expect_rows("k", k)
    schema.expect_shape("v", v, tuple(k.shape), "[T, Hk, D]")
    schema.expect_dtype("v", v, (k.dtype,))
    schema.expect_rows("v", v)
    schema.expect_device("v", v, k.device)
    num_tokens, num_kv_heads, head_dim = k.shape
    check_cache(k_cache, v_cache, slots, num_tokens=num_tokens, heads=(num_kv_heads, head_dim), device=k.device)
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is not None:
            schema.expect_dtype(name, scale, (torch.float32,))
            schema.expect_device(name, scale, k.device)
            if scale.numel() != 1:
                raise ValueError(f"{name} has {scale.numel()} elements, expected one; pass a scalar tensor or a float")


def check_cache(
    k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, num_tokens: int, heads: tuple[int, int], device: torch.device
) -> None:
    """Raise what the host can know about caches and slots for ``num_tokens`` entries of shape ``heads``."""
    schema.expect_shape("k_cache", k_cache, (None, None, *heads), "[pages, page, Hk, D]")
    schema.expect_shape("v_cache", v_cache, tuple(k_cache.shape), "[pages, page, Hk, D]")
    schema.expect_dtype("k_cache", k_cache, CACHES)
    schema.expect_dtype("v_cache", v_cache, (k_cache.dtype,))
    schema.expect_range("page", k_cache.shape[1], 1, 2**31 - 1, "k_cache is [pages, page, Hk, D]")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        schema.expect_rows(name, cache)
        schema.expect_device(name, cache, device)
    schema.expect_shape("slots", slots, (num_tokens,), "[T]")
    schema.expect_dtype("slots", slots, (torch.int64,))
    schema.expect_contiguous("slots", slots)
    schema.expect_device("slots", slots, device)


def scale_tensor(scale: Tensor | float | None, device: torch.device) -> Tensor | None:
    """See a scale as the tensor that the op takes."""
    if scale is None or isinstance(scale, Tensor):
        return scale
    return torch.full((), scale, dtype=torch.float32, device=device)
