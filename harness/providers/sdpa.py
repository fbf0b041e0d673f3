"""torch's scaled_dot_product_attention by one of its libraries, as ``attention`` of one sequence.

It takes keys and values that lie one after the other, and no lengths of the device: pages are gathered and the length
is read before a graph is captured, which is not timed. The library's kernel alone is; ours reads pages and lengths
where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from minimax_m2.harness import devices
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Declared
from minimax_m2.harness.provider import Provider
from minimax_m2.harness.providers.prepared import Prepared
from minimax_m2.harness.providers.refusals import Refusals

DEVICE = "gpu"
LIBRARIES = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
# exp2 of a scaled argument, as in FlashAttention.
CONTRACT: dict[str, Declared] = {"attention": {"tensor_core": "bfloat16", "exp_ulps": 4.0}}
HALVES: tuple[Field, ...] = ("bfloat16", "float16")


def _sequence(case: Case) -> str | None:
    return None if case["cache"] == case["dtype"] else f"the library takes cache={case['dtype']}, not {case['cache']}"


def _can(engine: str) -> Refusals:
    return Refusals(
        engine,
        {
            # A causal mask begins at the first key: one query that sees all keys, or as many queries as keys. cuDNN
            # reads 16 bytes at a time and faults where a row begins elsewhere (docs/findings.md).
            "attention": {
                "B": (1,), "dtype": HALVES, "cache": HALVES, "kv_scale": ("none",), "pad": (0,), "D": (64, 128),
                "queries": ("one", "all"), "gap": (0, 8),
            },
        },
        {"attention": _sequence},
    )  # fmt: skip


CAN: dict[str, Refusals] = {name: _can(f"sdpa-{name}") for name in LIBRARIES}


def absence() -> str | None:
    """Why there is no GPU to run on, or None."""
    return devices.absence(DEVICE)


def cudnn() -> Provider:
    """cuDNN's kernels."""
    return _provider("cudnn")


def flash() -> Provider:
    """FlashAttention 2, as torch carries it."""
    return _provider("flash")


def _provider(name: str) -> Provider:
    can = CAN[name]
    return Provider(name=can.engine, device=DEVICE, functions=OFFERS[name].get, contract=CONTRACT, refuses=can)


_gathered: Prepared[tuple[Tensor, Tensor]] = Prepared()


def gathered(k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values ``[1, Hk, S, D]`` of the one sequence, heads lying side by side in a row."""
    length, page = int(seq_lens[0]), k_cache.shape[1]
    pages = block_table[0, : -(-length // page)].long()
    k, v = (cache[pages].flatten(0, 1)[:length].transpose(0, 1)[None] for cache in (k_cache, v_cache))
    return k, v


def attention(
    library: str, q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_lens: Tensor,
    query_start: Tensor, *, scale: float, max_query_len: int, max_seq_len: int, k_scale: None = None,
    v_scale: None = None,
) -> Tensor:  # fmt: skip
    """One query that sees every key, or as many queries as keys under a causal mask."""
    # Caches are rewritten in place where lengths are not: what is gathered is that of the last call outside a graph.
    k, v = _gathered.of(seq_lens, lambda: gathered(k_cache, v_cache, block_table, seq_lens))
    with sdpa_kernel(LIBRARIES[library]):
        y = scaled_dot_product_attention(
            q.transpose(0, 1)[None], k, v, is_causal=max_query_len > 1, scale=scale, enable_gqa=True
        )
    return y[0].transpose(0, 1)


OFFERS: dict[str, dict[str, Callable[..., Any]]] = {name: {"attention": partial(attention, name)} for name in LIBRARIES}
