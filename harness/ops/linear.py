"""A dense layer: sums in float32, rounded once."""

from __future__ import annotations

from typing import Any

import torch

from minimax_m2.harness.bits import REGIMES, Bits, regime_values, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, by_row, narrowed

FACTORS: dict[str, tuple[Field, ...]] = {
    # Around register blocks of 2 and 6 rows, a 64-token tile and a slab of 120 rows.
    "T": (1, 0, 2, 3, 5, 6, 7, 8, 13, 17, 64, 65, 121, MANY_ROWS),
    # Around blocks of 4 and 8 columns, a block of weight, and the 192-wide shards of TP8.
    "N": (8, 1, 3, 4, 5, 9, 16, 17, 48, 192, 255, 257),
    # Around one and two vectors of every instruction set, an odd tail, and the widths of M2's shards.
    "H": (64, 1, 7, 15, 16, 17, 31, 33, 48, 192, 255, 257, 768, 3072),
    "regime": REGIMES,
    "weight_milli": (20, 5, 100),  # the weight's standard deviation in thousandths
    "dtype": ("bfloat16", "float16", "float32"),
    "out": ("same", "float32"),
    "gap": (0, 8, 3),
}


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    fields = narrowed(fields, N=9, H=33)
    return fields | {"out": fields["dtype"] if fields["out"] == "same" else fields["out"]}


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    T, N, H = (case.number(name) for name in ("T", "N", "H"))
    dtype, out = (getattr(torch, case.word(name)) for name in ("dtype", "out"))
    x = regime_values(bits, "x", (T, H), case.word("regime")).to(dtype)
    # The bell's standard deviation is 1.155. The product fills the significand, as a trained weight does.
    weight = (bits.bell("weight", (N, H)) * (case.number("weight_milli") * 0.866e-3)).to(dtype)
    return {
        "x": strided(x, case.number("gap")),
        "weight": strided(weight, case.number("gap")),
        "out_dtype": None if out == dtype else out,
    }


def contract(case: Case) -> dict[str, Any]:
    """Round once to the result's dtype; a float32 sum is the result."""
    return {"out": None if case.word("out") == "float32" else case.word("out")}


def cost(case: Case) -> Cost:
    T, N, H = (case.number(name) for name in ("T", "N", "H"))
    width, out = (torch.empty(0, dtype=getattr(torch, case.word(n))).element_size() for n in ("dtype", "out"))
    return Cost(bytes=(T * H + N * H) * width + T * N * out, flops=2 * T * N * H)


OP = Op(
    name="linear",
    outputs={"y": "out"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=contract,
    choices={},
    # One rank's share of the qkv projection at TP8.
    shapes={"decode": {"T": 4, "N": 1024, "H": 3072}, "prefill": {"T": 256, "N": 1024, "H": 3072}},
    cost=cost,
    budgeted=("x",),
    rows=by_row("x"),
)
