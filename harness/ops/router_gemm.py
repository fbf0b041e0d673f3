"""The router's product: float32 whatever the dtype of x."""

from __future__ import annotations

from typing import Any

import torch

from minimax_m2.harness.bits import REGIMES, Bits, regime_values, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, by_row, narrowed

FACTORS: dict[str, tuple[Field, ...]] = {
    # Around register blocks of 2 and 6 rows, a 64-token tile and a slab of 120 rows.
    "T": (1, 0, 2, 3, 5, 6, 7, 8, 13, 17, 64, 65, 121, MANY_ROWS),
    # Around blocks of 4 and 8 columns, M2 (256), past it, and odd counts.
    "E": (8, 1, 3, 4, 5, 9, 16, 17, 48, 255, 256, 257, 384),
    # Around one and two vectors of every instruction set, an odd tail, and the widths of M2's shards.
    "H": (64, 1, 7, 15, 16, 17, 31, 33, 48, 192, 255, 257, 1024, 3072),
    "regime": REGIMES,
    "weight_milli": (20, 5, 100),  # the weight's standard deviation in thousandths
    "bias": (0, 1),
    "dtype": ("bfloat16", "float16", "float32"),
    "gap": (0, 8, 3),
}


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    T, E, H = (case.number(name) for name in ("T", "E", "H"))
    x = regime_values(bits, "x", (T, H), case.word("regime")).to(getattr(torch, case.word("dtype")))
    # The bell's standard deviation is 1.155. The product fills float32's significand, as a trained weight does.
    weight = (bits.bell("weight", (E, H)) * (case.number("weight_milli") * 0.866e-3)).to(torch.float32)
    return {
        "x": strided(x, case.number("gap")),
        "weight": strided(weight, case.number("gap")),
        "bias": bits.bell("bias", (E,)).to(torch.float32) if case.number("bias") else None,
    }


def cost(case: Case) -> Cost:
    T, E, H = (case.number(name) for name in ("T", "E", "H"))
    width = torch.empty(0, dtype=getattr(torch, case.word("dtype"))).element_size()
    return Cost(bytes=T * H * width + 4 * E * H + 4 * T * E, flops=2 * T * E * H)


OP = Op(
    name="router_gemm",
    outputs={"logits": "float32"},
    factors=FACTORS,
    settle=lambda fields: narrowed(fields, E=9, H=33),
    inputs=inputs,
    # The sum is float32 already: no engine rounds it again.
    contract=lambda case: {"logits": None},
    choices={},
    shapes={"decode": {"T": 4, "E": 256, "H": 3072}, "prefill": {"T": 256, "E": 256, "H": 3072}},
    cost=cost,
    budgeted=("x",),
    rows=by_row("x"),
)
