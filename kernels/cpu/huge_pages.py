"""Memory for packed weights in huge pages, where Linux has them."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

# A page table walk every 4 KB costs a stream of weights some percent; below this size nothing is gained.
SMALLEST_BYTES = 4 << 20


def in_huge_pages(x: Tensor) -> Tensor:
    """Copy ``x``, of any strides, into contiguous memory for which huge pages were asked before its first touch.

    The copy is made by all of torch's threads, so that each touches a share of the pages first. A system that has no
    huge pages, or a small ``x``, gets plain memory: only speed differs.
    """
    out = torch.empty(x.shape, dtype=x.dtype)
    if out.nbytes >= SMALLEST_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-out.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = out.data_ptr() + out.nbytes - first
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return out.copy_(x)
