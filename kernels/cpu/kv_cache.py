"""Store keys and values in the paged cache on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from minimax_m2.kernels.cpu import extension
from minimax_m2.kernels.schema import kv_cache as kv_schema

extension.load("kv_cache")


def kv_cache(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
) -> None:
    """Write each token to its slot: ``cache[slot // page, slot % page] = x / scale``.

    k, v                [T, Hk, D] float32, bfloat16 or float16, strides of tokens and heads free
    k_cache!, v_cache!  [pages, page, Hk, D] of those dtypes or float8_e4m3fn, written in place; only the last
                        dimension must be contiguous
    slots               [T] int64, each at most once; below 0: the token is not stored
    k_scale, v_scale    float, or float32 tensor of one element; a scaled or e4m3 cache saturates at 448

    Divided in float32, rounded once; a copy where the dtypes agree and nothing is scaled. Threads change no bit.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above, and ValueError for a slot
    past the cache, before anything is written.
    """
    k_scale, v_scale = (kv_schema.scale_tensor(scale, k.device) for scale in (k_scale, v_scale))
    kv_schema.check(k, v, k_cache, v_cache, slots, k_scale=k_scale, v_scale=v_scale)

    if k.shape[0] > 0:
        torch.ops.minimax_m2.kv_cache(k, v, k_cache, v_cache, slots, k_scale, v_scale)
