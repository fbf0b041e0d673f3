"""FlashInfer's attention over pages: two wrappers that plan on the host what a step's layers share, and XQA.

Planning reads lengths and pages on the host and divides the work among multiprocessors. An engine does it once a step
for all layers, so it stands before a captured graph and is not timed; our kernel does its share of it in every call.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.providers.prepared import Prepared

# Parts of split sequences, and XQA's semaphores and parts.
WORKSPACE_BYTES = 256 << 20
LAYOUT = "NHD"

# What is compiled for M2: its dtype and width of heads. Rows outside query_start are left unwritten, and so are those
# without keys.
PAGED: dict[str, tuple[Field, ...]] = {
    "dtype": ("bfloat16",), "cache": ("bfloat16",), "gap": (0,), "kv_scale": ("none",), "pad": (0,), "D": (128,),
    "queries": ("one", "all", "chunk", "mixed"),
}  # fmt: skip
XQA: dict[str, tuple[Field, ...]] = {
    **PAGED, "queries": ("one",), "ids": ("int32",), "page": (16,), "group": (6,),
}  # fmt: skip


def unplanned(case: Case) -> str | None:
    """Why a case is not planned, or None."""
    if not case.number("B"):
        return "the kernel is not launched for B=0"
    return None if case["cache"] == case["dtype"] else f"the kernel takes cache={case['dtype']}, not {case['cache']}"


_planned: Prepared[Any] = Prepared()


def attention(
    engine: Any, q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor,
    query_start: Tensor, *, scale: float, max_query_len: int, max_seq_len: int, k_scale: None = None,
    v_scale: None = None,
) -> Tensor:  # fmt: skip
    """A planned wrapper's ``run``."""
    wrapper = _planned.of(
        seq_lens, lambda: planned(engine, q, k_cache, block_table, seq_lens.tolist(), query_start.tolist(), scale)
    )
    y: Tensor = wrapper.run(q, (k_cache, v_cache))
    return y


def planned(
    engine: Any, q: Tensor, k_cache: Tensor, block_table: Tensor, lengths: list[int], starts: list[int], scale: float
) -> Any:
    """A wrapper for these lengths and pages: tensor cores and the buffers of a captured step for one query each."""
    page, kv_heads = k_cache.shape[1:3]
    counts = [-(-length // page) for length in lengths]
    indptr = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    rows = [block_table[b, :count] for b, count in enumerate(counts)]
    indices = torch.cat(rows).int()
    last = torch.tensor([(length - 1) % page + 1 if length else 0 for length in lengths], dtype=torch.int32)
    common: dict[str, Any] = {"sm_scale": scale, "q_data_type": q.dtype}
    if starts == list(range(len(lengths) + 1)):
        own = (torch.empty(max(1, size), dtype=torch.int32, device=q.device) for size in (len(indptr), len(indices)))
        wrapper = engine.decode.BatchDecodeWithPagedKVCacheWrapper(
            workspace(q.device), LAYOUT, True, True, *own, torch.empty(len(last), dtype=torch.int32, device=q.device)
        )
        wrapper.plan(indptr, indices, last, q.shape[1], kv_heads, q.shape[2], page, **common)
        return wrapper
    wrapper = engine.prefill.BatchPrefillWithPagedKVCacheWrapper(workspace(q.device), LAYOUT)
    wrapper.plan(
        torch.tensor(starts, dtype=torch.int32), indptr, indices, last, q.shape[1], kv_heads, q.shape[2], page,
        causal=True, **common,
    )  # fmt: skip
    return wrapper


def decode(
    engine: Any, q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor,
    query_start: Tensor, *, scale: float, max_query_len: int, max_seq_len: int, k_scale: None = None,
    v_scale: None = None,
) -> Tensor:  # fmt: skip
    """XQA on lengths and pages as they lie on the device."""
    y: Tensor = engine.decode.xqa_batch_decode_with_kv_cache(
        q, (k_cache, v_cache), workspace(q.device), block_table, seq_lens, max_seq_len, bmm1_scale=scale,
        kv_layout=LAYOUT,
    )  # fmt: skip
    return y


@cache
def workspace(device: torch.device) -> Tensor:
    """Memory that calls share, one after the other; zeroed, as semaphores begin."""
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
