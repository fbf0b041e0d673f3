"""SwiGLU and quantisation in one call, to e4m3 or int8, in groups or whole rows."""

from __future__ import annotations

from typing import Any

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Cost, Op, by_row
from minimax_m2.harness.ops import block_quant, rms_norm, swiglu

FACTORS: dict[str, tuple[Field, ...]] = {
    **swiglu.FACTORS,
    "group": (128, 64, 7, 2048),  # 2048: one scale a row
    "q": ("float8_e4m3fn", "int8"),
}


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    return {
        "gate_up": swiglu.gate_up_of(case, bits),
        "group": case.number("group"),
        "quant": "int8" if case.word("q") == "int8" else "e4m3",
    }


def contract(case: Case) -> dict[str, Any]:
    """What is quantised stays in float32, as fused kernels keep it."""
    return {"silu": None, "out": None, "scale": None, "reciprocal": None, "ties": "even"}


def cost(case: Case) -> Cost:
    T, I, group = (case.number(name) for name in ("T", "I", "group"))
    return Cost(bytes=T * I * (2 * rms_norm.element_bytes(case) + 1) + 4 * T * -(-I // group), flops=8 * T * I)


OP = Op(
    name="swiglu_quant",
    outputs={"q": "q", "scale": "float32"},
    factors=FACTORS,
    settle=swiglu.settle,
    inputs=inputs,
    contract=contract,
    choices={
        **swiglu.OP.choices,
        **block_quant.OP.choices,
        "ties": {"up": "sgl-kernel-npu:python/sgl_kernel_npu/sgl_kernel_npu/activation/swiglu_quant.py"},
    },
    shapes=swiglu.OP.shapes,
    cost=cost,
    parts=("swiglu", "block_quant"),
    budgeted=("gate_up",),
    rows=by_row("gate_up"),
)
