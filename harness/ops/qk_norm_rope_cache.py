"""QK norm, rotary embedding and the write into the paged cache, fused."""

from __future__ import annotations

from typing import Any

import torch

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.expectation import Tensors
from minimax_m2.harness.op import Cost, Op
from minimax_m2.harness.ops import kv_cache, qk_norm_rope
from minimax_m2.harness.ops.kv_cache import CACHE, caches, slots, written
from minimax_m2.harness.ops.rope import dtype_of
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.kv_cache import cache_entries
from minimax_m2.reference.qk_norm_rope import qk_norm_rope as norm_rope


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    return kv_cache.settle(qk_norm_rope.settle(fields))


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    k_cache, v_cache = caches(case, bits)
    written_to = {"k_cache": k_cache, "v_cache": v_cache, "slots": slots(case, bits)}
    return qk_norm_rope.inputs(case, bits) | written_to


def expect(
    op: Op, case: Case, arguments: dict[str, Any], contract: Contract, dtypes: dict[str, torch.dtype]
) -> Tensors:
    cached = {name: arguments[name] for name in ("k_cache", "v_cache", "slots")}
    norm_arguments = {name: value for name, value in arguments.items() if name not in cached}
    q, k, v = norm_rope(**norm_arguments, contract=contract)
    expected: dict[str, Any] = {"q": q}
    for name, x in (("k_cache", k), ("v_cache", v)):
        entries: Any = cache_entries(x, scale=None, dtype=dtype_of(case, "cache"), contract=contract)
        expected[name] = written(cached[name], entries, cached["slots"])
    return Tensors(op, expected, dtypes)


def contract(case: Case) -> dict[str, Any]:
    # A cache of the model's dtype holds k as it was rounded; an FP8 cache rounds that once more.
    stored = "float8_e4m3fn" if case.word("cache") == "float8_e4m3fn" else None
    return qk_norm_rope.contract(case) | {"stored": stored}


def cost(case: Case) -> Cost:
    whole = qk_norm_rope.cost(case)
    values = 2 * case.number("T") * case.number("Hk") * case.number("D")
    narrower = dtype_of(case, "dtype").itemsize - dtype_of(case, "cache").itemsize
    return Cost(bytes=whole.bytes - values * narrower + 8 * case.number("T"), flops=whole.flops)


OP = Op(
    name="qk_norm_rope_cache",
    outputs={"q": "dtype", "k_cache": "cache", "v_cache": "cache"},
    factors=qk_norm_rope.FACTORS | CACHE,
    settle=settle,
    inputs=inputs,
    contract=contract,
    choices=qk_norm_rope.CHOICES,
    shapes={"decode": {"T": 16, **qk_norm_rope.M2}, "prefill": {"T": 128, **qk_norm_rope.M2}},
    cost=cost,
    parts=("qk_norm_rope", "kv_cache"),
    budgeted=("qkv", "stats"),
    mutates=("k_cache", "v_cache"),
    contiguous=("q",),
    expect=expect,
)
