"""Paged attention: sequences of every length around a page, caches poisoned wherever nobody may read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits, regime_values, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Cost, Op

# Past what kernels split between threads or blocks; drawn with one head and one query a sequence.
LONG = (257, 1025)

FACTORS: dict[str, tuple[Field, ...]] = {
    "B": (1, 0, 2, 3),
    # Around pages of 16 and 64 slots and a block of 64 keys. The first sequence is that long, others up to it.
    "S": (5, 1, 2, 15, 16, 17, 33, 63, 64, 65, 128, 130, *LONG),
    # One new token each, whole prompts, the end of longer ones, all of these together, more queries than keys.
    "queries": ("one", "all", "chunk", "mixed", "more"),
    "page": (16, 1, 8, 64, 128),
    "Hk": (1, 2, 3),
    "group": (6, 1, 2, 7, 8),
    # M2's 128, others, and two that are no multiple of a vector.
    "D": (64, 128, 16, 40, 96, 20, 256),
    "regime": ("normal", "heavy", "tiny", "huge", "equal", "signed_zero"),
    "dtype": ("bfloat16", "float16", "float32"),
    "cache": ("same", "float8_e4m3fn"),
    "kv_scale": ("none", "float", "tensor"),
    "ids": ("int32", "int64"),
    "pad": (0, 3),  # rows of q outside query_start, behind and one in front
    "gap": (0, 8, 3),
}

TRANSFORMERS = "transformers:src/transformers/models/minimax_m2/modeling_minimax_m2.py"
FLASH = "FlashAttention:csrc/flash_attn/src/flash_fwd_kernel.h"


class Batch(NamedTuple):
    """Lengths of the sequences, queries included, and where each one's queries start."""

    lengths: list[int]
    starts: list[int]


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    # Every query of a long prompt would cost the square of its length; the end of one shows a kernel as much.
    if fields["S"] in LONG:
        fields = fields | {"queries": "one", "Hk": 1, "group": min(2, int(fields["group"]))}
    return fields | {"cache": fields["dtype"] if fields["cache"] == "same" else fields["cache"]}


def batch(case: Case, bits: Bits) -> Batch:
    B, S = case.number("B"), case.number("S")
    lengths = [S, *bits.integers("lengths", (max(0, B - 1),), 0, S).tolist()][:B]
    starts = [case.number("pad") // 3]
    for b, length in enumerate(lengths):
        kind = case.word("queries")
        kind = ("one", "all", "chunk")[b % 3] if kind == "mixed" else kind
        chunk = int(bits.integers(f"chunk/{b}", (1,), min(1, length), length))
        starts.append(starts[-1] + {"one": 1, "all": length, "chunk": chunk, "more": length + 2}[kind])
    return Batch(lengths, starts)


def paged(case: Case, bits: Bits, name: str, pages: Tensor, lengths: list[int], extra: int) -> Tensor:
    """A cache ``[pages, page, Hk, D]`` that is NaN but in the slots that the sequences own."""
    page, Hk, D = (case.number(n) for n in ("page", "Hk", "D"))
    cache = torch.full((pages.numel() + extra, page, Hk, D), torch.nan, dtype=torch.float64)
    used = 0
    for b, length in enumerate(lengths):
        count = -(-length // page)
        rows = torch.full((count * page, Hk, D), torch.nan, dtype=torch.float64)
        rows[:length] = bits.bell(f"{name}/{b}", (length, Hk, D))
        cache[pages[used : used + count]] = rows.view(count, page, Hk, D)
        used += count
    return strided(cache.to(getattr(torch, case.word("cache"))), case.number("gap"))


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    lengths, starts = batch(case, bits)
    page, Hk, D = (case.number(n) for n in ("page", "Hk", "D"))
    counts = [-(-length // page) for length in lengths]
    extra = 2
    pages = bits.shuffled("pages", sum(counts) + extra)[: sum(counts)]
    # What lies behind a sequence's pages is never read, so any number may stand there.
    table = torch.tensor([-1, 2**30]).repeat(len(counts), max(counts, default=0) // 2 + 1)
    for b, own in enumerate(pages.split(counts) if counts else ()):
        table[b, : len(own)] = own
    ids = getattr(torch, case.word("ids"))
    T, heads = starts[-1] + case.number("pad"), Hk * case.number("group")
    q = regime_values(bits, "q", (T, heads, D), case.word("regime")).to(getattr(torch, case.word("dtype")))
    queries = [end - start for start, end in pairwise(starts)]
    # A product with a power of two is exact; with a tensor's scale it rounds, which the budget counts.
    scales = {"none": (None, None), "float": (0.5, 2.0), "tensor": (torch.tensor([0.37]), torch.tensor([1.7]))}
    return {
        "q": strided(q, case.number("gap")),
        "k_cache": paged(case, bits, "k", pages, lengths, extra),
        "v_cache": paged(case, bits, "v", pages, lengths, extra),
        "block_table": table.to(ids),
        "seq_lens": torch.tensor(lengths, dtype=ids),
        "query_start": torch.tensor(starts, dtype=ids),
        "scale": D**-0.5,
        "max_query_len": max(queries, default=0),
        "max_seq_len": max(lengths, default=0),
        "k_scale": scales[case.word("kv_scale")][0],
        "v_scale": scales[case.word("kv_scale")][1],
    }


def restricted(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The arguments of some rows: each is a sequence's one query, of a sequence that ends with it."""
    starts, lengths = (arguments[name].long() for name in ("query_start", "seq_lens"))
    owner = torch.searchsorted(starts, rows, right=True) - 1
    inside = (owner >= 0) & (owner < len(lengths))
    owner = owner.clamp(0, len(lengths) - 1)
    seen = (lengths[owner] - starts[owner + 1] + rows + 1).clamp(min=0) * inside
    one_each = torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device)
    return arguments | {
        "q": arguments["q"][rows], "block_table": arguments["block_table"][owner],
        "seq_lens": seen.to(arguments["seq_lens"].dtype), "query_start": one_each, "max_query_len": 1,
    }  # fmt: skip


def contract(case: Case) -> dict[str, Any]:
    """Flash kernels keep scores in float32 and cast the weights to the model's dtype for the second product."""
    model = None if case.word("dtype") == "float32" else case.word("dtype")
    return {"scores": None, "probabilities": model, "normalised": None, "out": model}


def cost(case: Case) -> Cost:
    lengths, starts = batch(case, Bits(case))
    heads, Hk, D = case.number("Hk") * case.number("group"), case.number("Hk"), case.number("D")
    model, cache = (torch.empty(0, dtype=getattr(torch, case.word(n))).element_size() for n in ("dtype", "cache"))
    pairs = 0
    for length, (start, end) in zip(lengths, pairwise(starts), strict=True):
        pairs += sum(max(0, length - after) for after in range(end - start))
    moved = 2 * (starts[-1] + case.number("pad")) * heads * D * model + 2 * sum(lengths) * Hk * D * cache
    return Cost(bytes=moved, flops=4 * pairs * heads * D)


OP = Op(
    name="attention",
    outputs={"y": "dtype"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=contract,
    choices={
        "scores": {"dtype": TRANSFORMERS},
        # None: float32 weights. dtype: cast for the second product.
        "probabilities": {None: "ours:kernels/cpu/attention.h", "dtype": FLASH},
        "normalised": {True: TRANSFORMERS},
    },
    shapes={
        "decode": {"B": 4, "S": 1024, "queries": "one", "Hk": 8, "D": 128},
        # One rank's heads at TP8.
        "prefill": {"B": 1, "S": 512, "queries": "all", "Hk": 1, "D": 128},
    },
    cost=cost,
    budgeted=("q", "k_scale", "v_scale"),
    rows=restricted,
)
