"""Launches of ``attention_rows.cu``: one token or two a sequence over a paged cache, where nvcc makes it for sm_90."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from minimax_m2.kernels.gpu import toolkit
from minimax_m2.kernels.gpu.divisor import Divisor, divisor

# Queries times query heads of a key/value head: the columns of a tensor core.
ROWS = 8
HEAD_DIM = 128
# Channels that a thread copies at once.
CHUNK = 8
# Pairs of a sequence and a head, and keys of the longest sequence, up to where this was ahead of Triton's splits.
FEW_PAIRS, FEW_KEYS = 7, 1 << 14
SOME_PAIRS, SOME_KEYS, MORE_KEYS = 8, 1 << 12, 1 << 15
MANY_KEYS = 1 << 13
MOST_PROGRAMS = 16


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
            "q_stride", "q_head_stride", "k_head_stride", "v_head_stride", "table_stride",
        )),
        *((name, ctypes.c_uint) for name in ("k_page_stride", "k_slot_stride", "v_page_stride", "v_slot_stride")),
        ("factor", ctypes.c_float),
        *((name, ctypes.c_int) for name in (
            "tokens", "sequences", "pages", "page", "capacity", "heads", "group", "queries", "expected", "wide_table",
            "wide_lengths", "wide_starts",
        )),
        *((name, Divisor) for name in ("by_page", "by_heads", "by_group", "by_programs")),
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


def readable(q: Tensor, caches: Sequence[Tensor]) -> bool:
    """Whether rows begin where a thread reads, 4 bytes of q, 16 of a cache, and 32 bits count a cache's 16 bytes."""
    aligned = all(
        x.data_ptr() % bytes_ == 0 and all(stride * x.element_size() % bytes_ == 0 for stride in x.stride()[:-1])
        for x, bytes_ in ((q, 4), *((x, 16) for x in caches))
    )
    return aligned and all(
        sum((n - 1) * stride for n, stride in zip(x.shape[:2], x.stride()[:2], strict=True)) < CHUNK << 32
        for x in caches
    )


def cut(pairs: int, length: int, held: Callable[[Cut], int]) -> Cut | None:
    """How ``pairs`` of sequences and heads share the multiprocessors, by the longest sequence; None: Triton is ahead.

    Up to seven pairs take the largest clusters, eight of few keys smaller ones, two programs a multiprocessor.

    held   how many clusters of a cut the device holds at once
    """
    if pairs <= FEW_PAIRS and length <= FEW_KEYS:
        few = Cut(4, 3, MOST_PROGRAMS)
    elif pairs == SOME_PAIRS and length <= SOME_KEYS:
        few = Cut(4, 3, 8)
    elif length <= (MORE_KEYS if pairs == SOME_PAIRS else MANY_KEYS):
        few = at_once(pairs, held)
    else:
        return None
    return few if held(few) else None


@cache
def at_once(pairs: int, held: Callable[[Cut], int]) -> Cut:
    """The largest clusters, a multiprocessor a program, of which the device holds as many as there are pairs.

    A cluster stays within a group of multiprocessors. Larger ones would run two in a group, which share what it reads
    by while another group idles. Where not even clusters of two all run at once they run one after the other: those
    of shorter sequences end sooner, and leave their multiprocessors to the next.
    """
    cuts = [Cut(8, 3, programs) for programs in range(MOST_PROGRAMS, 1, -1)]
    return next((found for found in cuts if held(found) >= pairs), cuts[-1])


@cache
def held_by(device: torch.device) -> Callable[[Cut], int]:
    """How many clusters of a cut a device holds at once, asked once."""

    @cache
    def held(chosen: Cut) -> int:
        library = toolkit.loaded("attention_rows", "90a")
        with torch.cuda.device(device):
            found = int(library.minimax_m2_attention_rows_places(*chosen))
        toolkit.demand_launched(library, max(0, -found), f"attention_rows {chosen}")
        return found

    return held


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
        q_stride=q.stride(0), q_head_stride=q.stride(1), k_head_stride=k_cache.stride(2),
        v_head_stride=v_cache.stride(2), table_stride=block_table.stride(0), k_page_stride=k_cache.stride(0) // CHUNK,
        k_slot_stride=k_cache.stride(1) // CHUNK, v_page_stride=v_cache.stride(0) // CHUNK,
        v_slot_stride=v_cache.stride(1) // CHUNK,
        factor=scale * math.log2(math.e), tokens=q.shape[0], sequences=seq_lens.shape[0], pages=k_cache.shape[0],
        page=k_cache.shape[1], capacity=capacity, heads=heads, group=q.shape[1] // heads, queries=max_query_len,
        expected=max(0, min(max_seq_len, capacity)), wide_table=block_table.dtype == torch.int64,
        wide_lengths=seq_lens.dtype == torch.int64, wide_starts=query_start.dtype == torch.int64,
        by_page=divisor(k_cache.shape[1]), by_heads=divisor(heads), by_group=divisor(q.shape[1] // heads),
        by_programs=divisor(chosen.programs),
    )  # fmt: skip
    wrong = library.minimax_m2_attention_rows(
        *chosen, ctypes.byref(arguments), ctypes.c_void_p(torch.cuda.current_stream(q.device).cuda_stream)
    )
    toolkit.demand_launched(library, wrong, f"attention_rows {chosen}")
