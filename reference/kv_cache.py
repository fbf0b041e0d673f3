"""Store keys and values in the paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.reference.block_quant import LARGEST_E4M3
from minimax_m2.reference.contract import EXACT, Contract, rounded


def kv_cache(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
    contract: Contract = EXACT,
) -> None:
    """Write each token to its slot: ``cache[slot // page, slot % page] = x / scale``.

    k, v              [T, Hk, D]
    k_cache!, v_cache! [pages, page, Hk, D], written in place, any strides
    slots             [T] int64; below 0: the token is not stored
    k_scale, v_scale  scalars; a scaled or e4m3 cache saturates at 448

    Contract: the fields of cache_entries. Raises IndexError for a slot past the cache.
    """
    kept = slots >= 0
    for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        page = cache.shape[1]
        entries = cache_entries(x, scale=scale, dtype=cache.dtype, contract=contract)
        cache[slots[kept] // page, slots[kept] % page] = entries[kept].to(cache.dtype)


def cache_entries(x: Tensor, *, scale: Tensor | float | None, dtype: torch.dtype, contract: Contract = EXACT) -> Tensor:
    """Make what is stored of ``x [T, Hk, D]`` in a cache of ``dtype``, still in the working dtype.

    Contract: ``stored``: "float8_e4m3fn" for FP8 caches (vLLM reshape_and_cache_flash), else the cache's dtype or None.
    """
    if scale is not None:
        x = x / scale
    if scale is not None or dtype == torch.float8_e4m3fn:
        x = x.clamp(-LARGEST_E4M3, LARGEST_E4M3)
    return rounded(x, contract.stored)
