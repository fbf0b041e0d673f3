"""Launches of ``attention_rows.cu``: one token or two a sequence over a paged cache, where nvcc makes it for sm_90."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.kernels.gpu import toolkit

# Queries times query heads of a key/value head: the columns of a tensor core.
ROWS = 8
HEAD_DIM = 128
# Pairs of a sequence and a head that are few, and keys that all of them have together; pairs that are many, and keys of
# the longest sequence. Between and beyond, Triton's splits are as fast or faster: 43 beside 51 us at 1 x 32768.
FEW_PAIRS, FEW_KEYS = 8, 1 << 15
MANY_PAIRS, MOST_KEYS = 64, 8192


class Cut(NamedTuple):
    """Warps of a program, tiles that each has in flight, programs that share the keys of a head."""

    warps: int
    stages: int
    programs: int


class Arguments(ctypes.Structure):
    """The arguments of the kernel, as its source declares them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "table", "lengths", "starts", "out")),
        *((name, ctypes.c_longlong) for name in (
            "q_stride", "q_head_stride", "k_page_stride", "k_slot_stride", "k_head_stride", "v_page_stride",
            "v_slot_stride", "v_head_stride", "table_stride",
        )),
        ("factor", ctypes.c_float),
        *((name, ctypes.c_int) for name in (
            "tokens", "sequences", "pages", "page", "capacity", "heads", "group", "queries", "expected", "wide_table",
            "wide_lengths", "wide_starts",
        )),
    ]  # fmt: skip


def fits(
    *, capability: int, compiler: str | None, rows: int, head_dim: int, dtype: torch.dtype, cache: torch.dtype,
    scaled: bool, aligned: bool,
) -> bool:  # fmt: skip
    """Whether a sequence's new tokens are so few, and its cache is one of bfloat16 that is read 16 bytes at once.

    sm_90 alone was measured; nvcc makes the kernel on first use.
    """
    return (
        capability == 90 and compiler is not None and 0 < rows <= ROWS and head_dim == HEAD_DIM
        and dtype == torch.bfloat16 and cache == dtype and not scaled and aligned
    )  # fmt: skip


def aligned(q: Tensor, caches: Sequence[Tensor]) -> bool:
    """Whether rows begin where a thread reads: 4 bytes of q, 16 of a cache."""
    return all(
        x.data_ptr() % bytes_ == 0 and all(stride * x.element_size() % bytes_ == 0 for stride in x.stride()[:-1])
        for x, bytes_ in ((q, 4), *((x, 16) for x in caches))
    )


def cut(pairs: int, length: int) -> Cut | None:
    """How ``pairs`` of sequences and heads share the multiprocessors, by the longest sequence; None: Triton is ahead.

    Few of few keys take clusters as large as all fit at once. Many take clusters of two, one after the other: those of
    shorter sequences end sooner, and leave their multiprocessors to the next.
    """
    if pairs <= FEW_PAIRS and pairs * length <= FEW_KEYS:
        return Cut(4, 3, 8 if length <= 2048 else 16)
    if pairs >= MANY_PAIRS and length <= MOST_KEYS:
        return Cut(8, 3, 2)
    return None


@cache
def is_held(device: torch.device, chosen: Cut) -> bool:
    """Whether a device holds such a cluster."""
    library = toolkit.loaded("attention_rows", "90a")
    with torch.cuda.device(device):
        found = library.minimax_m2_attention_rows_places(*chosen)
    toolkit.demand_launched(library, max(0, -found), f"attention_rows {chosen}")
    return bool(found)


def launch(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor,
    out: Tensor, chosen: Cut, *, scale: float, max_query_len: int, max_seq_len: int, capacity: int,
) -> None:  # fmt: skip
    """Write the attention of ``q`` to ``out``; ``capacity``: the keys that a row of the table can name."""
    library, heads = toolkit.loaded("attention_rows", "90a"), k_cache.shape[2]
    arguments = Arguments(
        **{name: x.data_ptr() for name, x in (
            ("q", q), ("k", k_cache), ("v", v_cache), ("table", block_table), ("lengths", seq_lens),
            ("starts", query_start), ("out", out),
        )},
        q_stride=q.stride(0), q_head_stride=q.stride(1), k_page_stride=k_cache.stride(0),
        k_slot_stride=k_cache.stride(1), k_head_stride=k_cache.stride(2), v_page_stride=v_cache.stride(0),
        v_slot_stride=v_cache.stride(1), v_head_stride=v_cache.stride(2), table_stride=block_table.stride(0),
        factor=scale * math.log2(math.e), tokens=q.shape[0], sequences=seq_lens.shape[0], pages=k_cache.shape[0],
        page=k_cache.shape[1], capacity=capacity, heads=heads, group=q.shape[1] // heads, queries=max_query_len,
        expected=min(max_seq_len, capacity), wide_table=block_table.dtype == torch.int64,
        wide_lengths=seq_lens.dtype == torch.int64, wide_starts=query_start.dtype == torch.int64,
    )  # fmt: skip
    wrong = library.minimax_m2_attention_rows(
        *chosen, ctypes.byref(arguments), ctypes.c_void_p(torch.cuda.current_stream(q.device).cuda_stream)
    )
    toolkit.demand_launched(library, wrong, f"attention_rows {chosen}")
