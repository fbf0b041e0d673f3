"""Splitting a gated delta net's projections: both layouts, heads around every register, value heads of any width."""

from __future__ import annotations

from typing import Any

from minimax_m2.harness.bits import Bits, strided
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Cost, Op
from minimax_m2.harness.ops.rope import dtype_of

# Value heads: one, Qwen3.5's, and their neighbours, whose gates end inside a register.
VALUE_HEADS: tuple[Field, ...] = (32, 1, 31, 33, 64)

FACTORS: dict[str, tuple[Field, ...]] = {
    "T": (2, 0, 1, 3, 17),
    "Hv": VALUE_HEADS,
    "Hk": (16, 1, 2, 11, 31, 33),  # the largest divisor of Hv up to this
    "Dk": (128, 64, 20, 1),
    "Dv": (128, 64, 33, 7),
    "layout": ("contiguous", "interleaved"),
    "dtype": ("bfloat16", "float16", "float32"),
    "gap": (0, 8),
}


def divided(fields: dict[str, Field]) -> dict[str, Field]:
    """Every key head serves the same number of value heads."""
    Hv, most = int(fields["Hv"]), int(fields["Hk"])
    return fields | {"Hk": max(d for d in range(1, most + 1) if Hv % d == 0)}


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    T, Hk, Hv, Dk, Dv = (case.number(name) for name in ("T", "Hk", "Hv", "Dk", "Dv"))
    widths = {"qkvz": 2 * Hk * Dk + 2 * Hv * Dv, "ba": 2 * Hv}
    rows = {name: bits.bell(name, (T, width)).to(dtype_of(case, "dtype")) for name, width in widths.items()}
    sizes = {"num_k_heads": Hk, "num_v_heads": Hv, "head_k_dim": Dk, "head_v_dim": Dv}
    return {name: strided(x, case.number("gap")) for name, x in rows.items()} | sizes | {"layout": case.word("layout")}


def cost(case: Case) -> Cost:
    T, Hk, Hv, Dk, Dv = (case.number(name) for name in ("T", "Hk", "Hv", "Dk", "Dv"))
    return Cost(bytes=4 * T * (Hk * Dk + Hv * Dv + Hv) * dtype_of(case, "dtype").itemsize, flops=0)


OP = Op(
    name="qkvzba_split",
    outputs=dict.fromkeys(("qkv", "z", "b", "a"), "dtype"),
    factors=FACTORS,
    settle=divided,
    inputs=inputs,
    contract=lambda case: {},
    choices={},
    shapes={"decode": {"T": 16, "Hv": 32, "Hk": 16}, "prefill": {"T": 256, "Hv": 32, "Hk": 16}},
    cost=cost,
)
