"""Writing the cache: each token to its slot, no other byte touched, whatever the strides and the offsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.expectation import call_reference, expectation
from minimax_m2.harness.op import find_op
from minimax_m2.harness.sampling import sampled
from minimax_m2.harness.trial import try_on
from minimax_m2.harness.verdict import Outcome
from minimax_m2.reference.contract import Contract

KV_CACHE = find_op("kv_cache")


def plain(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *,
          k_scale: Tensor | float | None = None, v_scale: Tensor | float | None = None,
          step: str = "") -> None:  # fmt: skip
    """The write in float32 torch; ``step`` names one thing to do wrong."""
    kept = torch.ones_like(slots, dtype=torch.bool) if step == "stores slot -1" else slots >= 0
    if step == "writes v with the scale of k":
        v_scale = k_scale
    for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        y = x.float()
        if scale is not None and step != "forgets the scale":
            y = y * scale if step == "multiplies by the scale" else y / scale
        if cache.dtype == torch.float8_e4m3fn:
            y = y.masked_fill(y.abs() > 448, torch.nan) if step == "overflows" else y.clamp(-448, 448)
        _, page, heads, dim = cache.shape
        if step == "ignores the strides of pages":
            cache = cache.as_strided(cache.shape, (page * heads * dim, heads * dim, dim, 1))
        offset = slots // page * cache.stride(0)
        wraps = step == "keeps offsets in int32"
        chosen = kept & (offset < 2**31) if wraps else kept
        cache[slots[chosen] // page, slots[chosen] % page] = y[chosen].to(cache.dtype)
    if step == "clears what it does not write":
        k_cache[[i for i in range(len(k_cache)) if i not in (slots // k_cache.shape[1]).tolist()]] = 0


def doing(step: str) -> Callable[..., Any]:
    def kv_cache(*args: Any, **keywords: Any) -> None:
        plain(*args, **keywords, step=step)

    return kv_cache


def test_a_correct_float32_write_passes() -> None:
    assert all(v.passed for v in try_on("kv_cache", doing(""), cases=200))


@pytest.mark.parametrize("step", ["stores slot -1", "ignores the strides of pages", "keeps offsets in int32",
    "writes v with the scale of k", "forgets the scale", "multiplies by the scale", "overflows",
    "clears what it does not write"])  # fmt: skip
def test_a_wrong_write_is_told(step: str) -> None:
    assert try_on("kv_cache", doing(step), cases=80)[-1].outcome in (Outcome.WRONG, Outcome.NOT_A_NUMBER)


@pytest.mark.parametrize("case", sampled(KV_CACHE, 24), ids=lambda case: case.id)
def test_the_expectation_is_what_the_reference_writes(case: Any) -> None:
    contract = KV_CACHE.full_contract(case, {})
    wide = {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in KV_CACHE.inputs(case, Bits(case)).items()}  # fmt: skip
    for expected, actual in zip(expectation(KV_CACHE, case, contract).perfect(),
                                call_reference(KV_CACHE, wide, Contract(contract)), strict=True):  # fmt: skip
        assert torch.equal(expected.double(), actual)
