"""FlashAttention 3 and the cache's write, as the wheel vllm carries them, on an NVIDIA GPU of sm_90."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Declared
from minimax_m2.harness.peers import library
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers import vllm_cuda
from minimax_m2.harness.providers.refusals import Refusals

DEVICE = "gpu"
FOLDER, LIBRARY = "vllm/vllm_flash_attn", "_vllm_fa3_C.abi3.so"

# ex2.approx of the PTX manual, on an argument that is rounded too.
CONTRACT: dict[str, Declared] = {"attention": {"tensor_core": "bfloat16", "exp_ulps": 4.0}, "kv_cache": {}}

HALVES: tuple[Field, ...] = ("bfloat16", "float16")
ENTRIES: dict[str, tuple[Field, ...]] = {"dtype": HALVES, "cache": HALVES, "gap": (0,)}


def _sequences(case: Case) -> str | None:
    if not case.number("B"):
        return "the kernel is not launched for B=0"
    return None if case["cache"] == case["dtype"] else f"the kernel takes cache={case['dtype']}, not {case['cache']}"


def _tokens(case: Case) -> str | None:
    if not case.number("T"):
        return "the kernel is not launched for T=0"
    return None if case["cache"] == case["dtype"] else f"the kernel takes cache={case['dtype']}, not {case['cache']}"


CAN: dict[str, Refusals] = {
    "provider": Refusals(
        "vllm-fa3",
        {
            # Rows outside query_start are left unwritten, and so are those without keys.
            "attention": {
                **ENTRIES, "kv_scale": ("none",), "ids": ("int32",), "pad": (0,), "D": (64, 128, 256),
                "page": (16, 64, 128), "queries": ("one", "all", "chunk", "mixed"),
            },
            "kv_cache": {**ENTRIES, "scale": ("none",), "layout": ("NHD", "HND", "paired"), "D": (128, 64)},
        },
        {"attention": _sequences, "kv_cache": _tokens},
    )
}  # fmt: skip


def absence() -> str | None:
    """Why it cannot be used here, or None."""
    if (reason := vllm_cuda.absence()) is not None:
        return reason
    if torch.cuda.get_device_capability() != (9, 0):
        return "FlashAttention 3 needs compute capability 9.0"
    return None if _file() else f"{LIBRARY} of vllm is not installed; {vllm_cuda.REMEDY}"


def _file() -> Any:
    return library(vllm_cuda.WHEEL, FOLDER, LIBRARY)


def provider() -> Provider:
    """FlashAttention 3."""
    return Provider(
        name="vllm-fa3", device=DEVICE, functions=OFFERS["provider"].get, contract=CONTRACT, refuses=CAN["provider"]
    )


@cache
def _loaded() -> None:
    vllm_cuda.loaded()
    torch.ops.load_library(str(_file()))


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor, query_start: Tensor, *,
    scale: float, max_query_len: int, max_seq_len: int, k_scale: Tensor | None = None, v_scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """fwd on the pages as they lie, with the library's own choice of splits and no metadata made ahead."""
    _loaded()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    none = None
    torch.ops._vllm_fa3_C.fwd(
        q, k_cache, v_cache, none, none, none, out, query_start, none, none, none, seq_lens, max_query_len, max_seq_len,
        block_table, none, none, none, none, none, none, none, none, scale, True, -1, -1, 0.0, True, none, 0, none, 0,
        none, 1, 0, none,
    )  # fmt: skip
    return out


def kv_cache(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:  # fmt: skip
    """reshape_and_cache_flash."""
    _loaded()
    one = torch.ones((), device=k.device)
    torch.ops._C_cache_ops.reshape_and_cache_flash(k, v, k_cache, v_cache, slots, "auto", one, one)


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {"provider": {"attention": attention, "kv_cache": kv_cache}}
