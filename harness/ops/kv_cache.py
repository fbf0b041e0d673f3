"""Writing the paged cache: every layout of pages, tokens that are not stored, scaled and saturating FP8."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.budget import RULES, Budgeted
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.expectation import Tensors
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, narrowed
from minimax_m2.harness.ops.rope import dtype_of, heads
from minimax_m2.reference.contract import Contract
from minimax_m2.reference.kv_cache import cache_entries

# What kv_cache has in common with the fusion it is a part of.
CACHE: dict[str, tuple[Field, ...]] = {
    "page": (16, 1, 64),
    "slots": ("scattered", "some", "none"),  # some: every third token is not stored
    # Heads inside tokens, tokens inside heads, k and v of a page side by side, pages 2^31 elements apart.
    "layout": ("NHD", "HND", "paired", "far"),
    "cache": ("model", "float8_e4m3fn"),
}

FACTORS: dict[str, tuple[Field, ...]] = {
    "T": (2, 0, 1, 3, 8, 17, MANY_ROWS),
    "Hk": (2, 1, 8),
    # The last leaves a tail in every register of eight or sixteen.
    "D": (128, 64, 96, 20),
    "regime": ("normal", "heavy", "tiny", "huge", "signed_zero"),
    "dtype": ("bfloat16", "float16", "float32"),
    "scale": ("none", "float", "tensor"),
    "gap": (0, 8, 3),
} | CACHE

# Float32 values that are no powers of two; the first sends a few of the heavy and huge values over 448.
SCALES = (torch.tensor(0.3), torch.tensor(0.7))


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    fields = narrowed(fields, Hk=1, D=64)
    settled = fields if fields["cache"] == "float8_e4m3fn" else fields | {"cache": fields["dtype"]}
    if settled["cache"] != "float8_e4m3fn":
        # Two GiB of untouched addresses will do; a wider format would need more.
        far = {"layout": "NHD"} if fields["layout"] == "far" else {}
        settled = settled | far | ({"scale": "none"} if "scale" in fields else {})
    return settled


def slots(case: Case, bits: Bits) -> Tensor:
    """``[T]`` int64, each slot at most once, -1 where the token is not stored."""
    T = case.number("T")
    found = bits.shuffled("slots", num_pages(case) * case.number("page"))[:T]
    dropped = {"scattered": 0, "some": 3, "none": 1}[case.word("slots")]
    return torch.where(torch.arange(T) % dropped == 0, -1, found) if dropped else found


def num_pages(case: Case) -> int:
    return -(-2 * case.number("T") // case.number("page")) + 1


def caches(case: Case, bits: Bits) -> tuple[Tensor, Tensor]:
    """Two caches ``[pages, page, Hk, D]`` with something in them already, laid out as the case says."""
    pages, page, Hk, D = num_pages(case), case.number("page"), case.number("Hk"), case.number("D")
    dtype, layout = dtype_of(case, "cache"), case.word("layout")
    block = page * Hk * D
    if layout == "far":
        stride = -(-(2**31) // max(1, pages - 1))
        store = torch.empty((pages - 1) * stride + 2 * block, dtype=dtype)
        views = [store.as_strided((pages, page, Hk, D), (stride, Hk * D, D, 1), at) for at in (0, block)]
    elif layout == "paired":
        views = list(torch.empty((pages, 2, page, Hk, D), dtype=dtype).unbind(1))
    elif layout == "HND":
        views = [torch.empty((pages, Hk, page, D), dtype=dtype).transpose(1, 2) for _ in range(2)]
    else:
        views = [torch.empty((pages, page, Hk, D), dtype=dtype) for _ in range(2)]
    for name, view in zip(("k_cache", "v_cache"), views, strict=True):
        view.copy_(bits.bell(name, (pages, page, Hk, D)).to(dtype))
    return views[0], views[1]


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    k, v = (heads(case, bits, name, case.number("Hk")) for name in ("k", "v"))
    k_cache, v_cache = caches(case, bits)
    arguments = {"k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "slots": slots(case, bits)}
    if case.word("scale") == "none":
        return arguments
    scales = SCALES if case.word("scale") == "tensor" else tuple(float(s) for s in SCALES)
    return arguments | {"k_scale": scales[0], "v_scale": scales[1]}


def written(cache: Tensor, entries: Budgeted, slots: Tensor) -> Budgeted:
    """The cache after ``cache[slot // page, slot % page] = entries``; what no slot names is unchanged, to the bit."""
    flat = cache.reshape(-1, *cache.shape[2:])
    source, kept = torch.arange(len(flat)), slots >= 0
    source[slots[kept]] = len(flat) + kept.nonzero()[:, 0]
    found: Budgeted = RULES["cat"]([Budgeted.exact(flat, entries.arithmetic), entries], 0)
    if entries.allowed is not None:
        found = replace(found, allowed=(torch.cat([flat, entries.allowed[0]]), torch.cat([flat, entries.allowed[1]])))
    return found.moved(lambda t: t[source].reshape(cache.shape))


def expect(
    op: Op, case: Case, arguments: dict[str, Any], contract: Contract, dtypes: dict[str, torch.dtype]
) -> Tensors:
    expected: dict[str, Budgeted | Tensor] = {}
    for x, cache, scale in (("k", "k_cache", "k_scale"), ("v", "v_cache", "v_scale")):
        entries: Any = cache_entries(
            arguments[x], scale=arguments.get(scale), dtype=dtype_of(case, "cache"), contract=contract
        )
        expected[cache] = written(arguments[cache], entries, arguments["slots"])
    return Tensors(op, expected, dtypes)


def cost(case: Case) -> Cost:
    values = 2 * case.number("T") * case.number("Hk") * case.number("D")
    each = dtype_of(case, "dtype").itemsize + dtype_of(case, "cache").itemsize
    return Cost(bytes=values * each + 8 * case.number("T"), flops=0 if case.word("scale") == "none" else values)


OP = Op(
    name="kv_cache",
    outputs={"k_cache": "cache", "v_cache": "cache"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=lambda case: {"stored": case.word("cache")},
    choices={},
    shapes={"decode": {"T": 16, "Hk": 8}, "prefill": {"T": 256, "Hk": 8}},
    cost=cost,
    budgeted=("k", "v"),
    mutates=("k_cache", "v_cache"),
    expect=expect,
)
