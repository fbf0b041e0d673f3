"""Memory for packed weights in huge pages, where Linux has them."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

# A page table walk every 4 KB costs a stream of weights some percent; below this size nothing is gained.
SMALLEST_BYTES = 4 << 20


def empty_in_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Contiguous memory for which huge pages were asked before its first touch.

    Whoever fills it should do so by all of torch's threads, so that each touches a share of the pages first. A system
    that has no huge pages, or a small shape, gets plain memory: only speed differs.
    """
    out = torch.empty(shape, dtype=dtype)
    if out.nbytes >= SMALLEST_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-out.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = out.data_ptr() + out.nbytes - first
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return out
