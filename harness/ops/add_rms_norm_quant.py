"""Residual addition, RMSNorm and quantisation in one call."""

from __future__ import annotations

from typing import Any

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Cost, Op, by_row
from minimax_m2.harness.ops import add_rms_norm, block_quant, rms_norm

FACTORS: dict[str, tuple[Field, ...]] = {**add_rms_norm.FACTORS, "group": (128, 64, 32, 7)}


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    return {**add_rms_norm.inputs(case, bits), "group": case.number("group")}


def contract(case: Case) -> dict[str, Any]:
    """What is quantised stays in float32, as fused kernels keep it."""
    return {**add_rms_norm.contract(case), "out": None, "scale": None, "reciprocal": None}


def cost(case: Case) -> Cost:
    T, H, group = (case.number(name) for name in ("T", "H", "group"))
    wide = (3 * T + 1) * H * rms_norm.element_bytes(case)
    return Cost(bytes=wide + T * H + 4 * T * -(-H // group), flops=8 * T * H)


OP = Op(
    name="add_rms_norm_quant",
    outputs={"q": "float8_e4m3fn", "scale": "float32", "residual": "dtype"},
    factors=FACTORS,
    settle=rms_norm.settle,
    inputs=inputs,
    contract=contract,
    choices={
        **add_rms_norm.OP.choices,
        **block_quant.OP.choices,
        "out": {"dtype": "vLLM:csrc/quantization/fused_kernels/fused_layernorm_dynamic_per_token_quant.cu"},
    },
    shapes=add_rms_norm.OP.shapes,
    cost=cost,
    parts=("add_rms_norm", "block_quant"),
    budgeted=("x", "residual"),
    rows=by_row("x", "residual"),
)
