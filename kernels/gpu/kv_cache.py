"""Store keys and values in the paged cache on a GPU: a program takes some channels of a token, of both."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minimax_m2.kernels.gpu.kv_cache_entries import entry, offsets_of, saturated
from minimax_m2.kernels.gpu.launch import (
    capability,
    chained,
    converts_e4m3,
    on_device_of,
    registered,
    take_turn,
)
from minimax_m2.kernels.launched import power_of_two
from minimax_m2.kernels.schema import kv_cache as kv_schema

# Channels of one program.
BLOCK = 1024


@triton.jit
def kv_cache_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, k_scale_ptr, v_scale_ptr,
    k_stride, k_head_stride, v_stride, v_head_stride, k_page_stride, k_slot_stride, k_cache_head_stride,
    v_page_stride, v_slot_stride, v_cache_head_stride, page, num_slots, width,
    D: tl.constexpr, BLOCK: tl.constexpr, CODED: tl.constexpr, HARDWARE: tl.constexpr,
    EARLY: tl.constexpr, FOLLOWED: tl.constexpr,
):  # fmt: skip
    take_turn(EARLY, FOLLOWED)
    t = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head, within = (channel // D).to(tl.int64), channel % D
    k_at, v_at, kept = offsets_of(
        slots_ptr, t, page, num_slots, k_page_stride, k_slot_stride, v_page_stride, v_slot_stride
    )
    stored = kept & (channel < width)
    k = tl.load(k_ptr + t * k_stride + head * k_head_stride + within, mask=stored)
    v = tl.load(v_ptr + t * v_stride + head * v_head_stride + within, mask=stored)
    dtype = k_cache_ptr.dtype.element_ty
    k, v = over(k, k_scale_ptr), over(v, v_scale_ptr)
    k_entry, v_entry = entry(k, dtype, CODED, HARDWARE), entry(v, dtype, CODED, HARDWARE)
    tl.store(k_cache_ptr + k_at + head * k_cache_head_stride + within, k_entry, mask=stored)
    tl.store(v_cache_ptr + v_at + head * v_cache_head_stride + within, v_entry, mask=stored)


@triton.jit
def over(x, scale_ptr):
    """x over its scale, if it has one; division, as the formula says: a reciprocal rounds twice."""
    if scale_ptr is not None:
        x = saturated(tl.div_rn(x.to(tl.float32), tl.load(scale_ptr)))
    return x


def _launch(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:  # fmt: skip
    num_tokens, Hk, D = k.shape
    num_slots, page = k_cache.shape[0] * k_cache.shape[1], k_cache.shape[1]
    coded = k_cache.dtype == torch.float8_e4m3fn
    k_entries, v_entries = (cache.view(torch.uint8) if coded else cache for cache in (k_cache, v_cache))
    block = min(BLOCK, power_of_two(Hk * D))
    programs, arch = triton.cdiv(Hk * D, block), capability(k)
    with on_device_of(k):
        kv_cache_kernel[(num_tokens, programs)](
            k, v, k_entries, v_entries, slots, k_scale, v_scale, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            *k_cache.stride()[:3], *v_cache.stride()[:3], page, num_slots, Hk * D,
            D=D, BLOCK=block, CODED=coded, HARDWARE=converts_e4m3(arch), num_warps=4,
            **chained(arch, num_tokens * programs * 4),
        )  # fmt: skip


_call = registered("kv_cache", _launch)


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
    slots               [T] int64, each at most once; below 0 or past the cache: the token is not stored
    k_scale, v_scale    float, or float32 tensor of one element; a scaled or e4m3 cache saturates at 448

    Divided in float32, rounded once; a copy where the dtypes agree and nothing is scaled.

    Raises ValueError or TypeError for shapes, dtypes, strides and sizes outside the above.
    """
    k_scale, v_scale = (kv_schema.scale_tensor(scale, k.device) for scale in (k_scale, v_scale))
    kv_schema.check(k, v, k_cache, v_cache, slots, k_scale=k_scale, v_scale=v_scale)

    if k.numel() > 0:
        _call(k, v, k_cache, v_cache, slots, k_scale, v_scale)
