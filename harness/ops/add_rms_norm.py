"""Residual addition and RMSNorm, under any of three rounding conventions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import Cost, Op, by_row
from minimax_m2.harness.ops import rms_norm

FACTORS: dict[str, tuple[Field, ...]] = {
    **rms_norm.FACTORS,
    # In M2 the residual stream is tens of times larger than what a layer adds; "cancel" leaves their last digits.
    "residual": ("same", "large", "cancel", "zero"),
}


def residual_of(case: Case, bits: Bits, x: Tensor) -> Tensor:
    """float64 ``[T, H]``."""
    other = rms_norm.rows(case, bits, "residual", case.number("H"))
    return {"same": other, "large": other * 16, "cancel": other / 64 - x, "zero": other * 0}[case.word("residual")]


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    x = rms_norm.rows(case, bits, "x", case.number("H"))
    given = rms_norm.inputs(case, bits)
    return {"x": given.pop("x"), "residual": rms_norm.in_case(case, residual_of(case, bits, x)), **given}


def contract(case: Case) -> dict[str, Any]:
    """Convention B: one rounding of each output, statistics of the sum before it is stored."""
    dtype = rms_norm.own_dtype(case)
    return {"residual": dtype, "variance_of": "unrounded", "normalised": None, "out": dtype}


def cost(case: Case) -> Cost:
    T, H = case.number("T"), case.number("H")
    return Cost(bytes=(4 * T + 1) * H * rms_norm.element_bytes(case), flops=5 * T * H)


OP = Op(
    name="add_rms_norm",
    outputs={"y": "dtype", "residual": "dtype"},
    factors=FACTORS,
    settle=rms_norm.settle,
    inputs=inputs,
    contract=contract,
    # A (vLLM) and C (transformers): variance_of "rounded", normalised "dtype".
    choices={
        "residual": {"dtype": rms_norm.VLLM},
        "variance_of": {"rounded": rms_norm.VLLM, "unrounded": rms_norm.SGLANG},
        **rms_norm.OP.choices,
    },
    shapes={"decode": {"T": 4, "H": 3072}, "prefill": {"T": 256, "H": 3072}},
    cost=cost,
    budgeted=("x", "residual"),
    rows=by_row("x", "residual"),
)
