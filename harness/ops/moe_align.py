"""Align: drawn loads around every block edge; integers, so nothing but equality is right."""

from __future__ import annotations

from typing import Any

import torch

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, narrowed
from minimax_m2.harness.ops.experts import ids_of, map_of

FACTORS: dict[str, tuple[Field, ...]] = {
    "T": (1, 0, 2, 3, 15, 16, 17, 33, 64, 65, MANY_ROWS),
    # M2 has 256 experts; more than 256, and one, are where tables of fixed size break.
    "E": (8, 1, 2, 3, 64, 256, 300, 1024),
    "K": (2, 1, 3, 4, 8),
    "block": (16, 1, 3, 4, 64, 128),
    "active": (1024, 8),
    "load": ("even", "hot", "same", "holes", "none"),
    "ids": ("int32", "int64"),
    "map": (0, 1),  # 1: expert_map keeps the odd experts
}


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    fields = narrowed(fields, E=64, K=4)
    active = min(int(fields["active"]), int(fields["E"]))
    return fields | {"active": active, "K": min(int(fields["K"]), active)}


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    E = case.number("E")
    return {
        "ids": ids_of(case, bits).to(getattr(torch, case.word("ids"))),
        "num_experts": max(1, E // 2) if case.number("map") else E,
        "block": case.number("block"),
        "expert_map": map_of(case),
    }


def cost(case: Case) -> Cost:
    """Ids are read once; slots, blocks and counts are written once."""
    T, E, K, block = (case.number(name) for name in ("T", "E", "K", "block"))
    slots = T * K
    blocks = min(slots, (slots + E * (block - 1)) // block)
    index = 4 if case.word("ids") == "int32" else 8
    return Cost(bytes=slots * index + 4 * (blocks * (block + 1) + 1 + E), flops=0)


OP = Op(
    name="moe_align",
    outputs={"sorted_slots": "int32", "block_experts": "int32", "num_padded": "int32", "counts": "int32"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=lambda case: {},
    choices={},
    shapes={"decode": {"T": 4, "E": 256, "K": 8}, "prefill": {"T": 256, "E": 256, "K": 8, "block": 64}},
    cost=cost,
)
