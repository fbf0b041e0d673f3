"""The fused write: the cache gets k normalised and rotated and v untouched, each in its own slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome
from minimax_m2.reference.kv_cache import kv_cache
from minimax_m2.reference.qk_norm_rope import qk_norm_rope


def plain(qkv: Tensor, stats: Tensor | None, q_weight: Tensor, k_weight: Tensor, cos_sin: Tensor, positions: Tensor,
          k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, step: str = "", **sizes: Any) -> Tensor:  # fmt: skip
    """The parts one after the other in float32 torch; ``step`` names one thing to do wrong."""
    weights = (q_weight.float(), k_weight.float())
    q, k, v = qk_norm_rope(qkv.float(), stats, *weights, cos_sin.float(), positions, **sizes)
    raw = qkv.float().split([qkv.shape[1] - 2 * k[:1].numel(), k[:1].numel(), k[:1].numel()], -1)[1]
    if len(qkv) and step == "stores k as it came":
        k = raw.reshape(k.shape)
    if step == "stores k before it turns":
        sizes["rotary_dim"] = 0
        k = qk_norm_rope(qkv.float(), stats, *weights, cos_sin.float(), positions, **sizes)[1]
    if step == "swaps k and v":
        k, v = v, k
    if step == "takes positions for slots":
        slots = positions.long() % (k_cache.shape[0] * k_cache.shape[1])
    if step == "stores tokens without a slot":
        slots = slots.clamp_min(0)
    kv_cache(k.to(qkv.dtype), v.to(qkv.dtype), k_cache, v_cache, slots)
    return q.to(qkv.dtype)


def doing(step: str) -> Callable[..., Any]:
    def qk_norm_rope_cache(*args: Any, **keywords: Any) -> Tensor:
        return plain(*args, **keywords, step=step)

    return qk_norm_rope_cache


def test_the_parts_in_float32_pass() -> None:
    assert all(v.passed for v in try_on("qk_norm_rope_cache", doing(""), cases=40))


@pytest.mark.parametrize(
    "step",
    [
        "stores k as it came",
        "stores k before it turns",
        "swaps k and v",
        "takes positions for slots",
        "stores tokens without a slot",
    ],
)
def test_a_wrong_write_is_told(step: str) -> None:
    assert try_on("qk_norm_rope_cache", doing(step))[-1].outcome is Outcome.WRONG
