"""Embedding: rows of a table or of a rank's shard, copied to the bit; ids elsewhere give rows of zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, narrowed
from minimax_m2.harness.ops.rope import dtype_of

FACTORS: dict[str, tuple[Field, ...]] = {
    "T": (2, 0, 1, 3, 17, 65, MANY_ROWS),
    "V": (64, 1, 7),
    # M2's width, one register, and rows whose ends are no whole register.
    "H": (64, 1, 7, 100, 3072),
    "start": (0, 1, 3),  # the shard's first id, in shards: 1 is the second rank's
    "where": ("inside", "anywhere", "outside"),
    "dtype": ("bfloat16", "float16", "float32"),
    "ids": ("int64", "int32"),
    "gap": (0, 8, 3),
}


def ids(case: Case, bits: Bits) -> Tensor:
    """``[T]``: ids of the shard; of any shard, its first and last neighbours included; of other shards only."""
    T, V, start = case.number("T"), case.number("V"), first_id(case)
    inside = bits.integers("ids", (T,), 0, V - 1) + start
    # The neighbours of the shard's edges, and ids far from it; -1 stands for a padded token.
    away = torch.tensor([start + V, start - 1, -1, start + 5 * V, 200063 + start])
    outside = away[bits.integers("away", (T,), 0, len(away) - 1)]
    kept = {"inside": 0, "anywhere": 1, "outside": 2}[case.word("where")]
    chosen = torch.where(bits.integers("side", (T,), 0, 1) < kept, outside, inside)
    return chosen.to(dtype_of(case, "ids"))


def first_id(case: Case) -> int:
    return case.number("start") * case.number("V")


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    weight = bits.bell("weight", (case.number("V"), case.number("H"))).to(dtype_of(case, "dtype"))
    return {"ids": ids(case, bits), "weight": strided(weight, case.number("gap")), "vocab_start": first_id(case)}


def cost(case: Case) -> Cost:
    T, H = case.number("T"), case.number("H")
    return Cost(bytes=T * (2 * H * dtype_of(case, "dtype").itemsize + dtype_of(case, "ids").itemsize), flops=0)


OP = Op(
    name="embedding",
    outputs={"rows": "dtype"},
    factors=FACTORS,
    settle=lambda fields: narrowed(fields, H=100),
    inputs=inputs,
    contract=lambda case: {},
    choices={},
    shapes={"decode": {"T": 16, "V": 2048, "H": 3072}, "prefill": {"T": 256, "V": 2048, "H": 3072}},
    cost=cost,
)
