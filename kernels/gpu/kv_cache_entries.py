"""Entries of the paged cache: where a token's lies, and what is stored of a value."""

from __future__ import annotations

import triton
import triton.language as tl

from minimax_m2.kernels.gpu.codes import e4m3_code


@triton.jit
def offsets_of(slots_ptr, t, page, num_slots, k_page_stride, k_slot_stride, v_page_stride, v_slot_stride):
    """Offsets of a token's entry in both caches, 64 bits wide, and whether it is stored at all.

    A slot past the cache stores nothing, as one below 0: no host waits to refuse it.
    """
    slot = tl.load(slots_ptr + t)
    kept = (slot >= 0) & (slot < num_slots)
    slot = tl.where(kept, slot, 0)
    of_page, within = slot // page, slot % page
    return of_page * k_page_stride + within * k_slot_stride, of_page * v_page_stride + within * v_slot_stride, kept


@triton.jit
def saturated(x):
    """Within -448..448; NaN stays."""
    x = tl.where(x > 448.0, 448.0, x)
    return tl.where(x < -448.0, -448.0, x)


@triton.jit
def entry(x, dtype: tl.constexpr, CODED: tl.constexpr, HARDWARE: tl.constexpr):
    """What a cache of ``dtype`` holds of x; CODED: the e4m3 code."""
    if CODED:
        stored = e4m3_code(saturated(x.to(tl.float32)), HARDWARE)
    else:
        stored = x.to(dtype)
    return stored
