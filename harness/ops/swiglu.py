"""SwiGLU: gates from deep saturation to underflow, halves of every alignment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimax_m2.harness.bits import Bits
from minimax_m2.harness.case import Case, Field
from minimax_m2.harness.op import MANY_ROWS, Cost, Op, by_row, narrowed
from minimax_m2.harness.ops import rms_norm

FACTORS: dict[str, tuple[Field, ...]] = {
    "T": (1, 0, 2, 5, 33, MANY_ROWS),
    # An odd I leaves the upper half unaligned; 192 and 384 are M2's at TP 8 and 4, 1536 is M2's.
    "I": (8, 1, 3, 15, 16, 17, 33, 64, 65, 129, 192, 384, 1536),
    "regime": rms_norm.FACTORS["regime"],
    "scale_milli": (1000, 20, 5, 100),  # the standard deviation of the normal regime in thousandths
    "dtype": ("bfloat16", "float16", "float32"),
    "gap": (0, 8, 3),
}

VLLM = "vLLM:csrc/activation_kernels.cu"


def gate_up_of(case: Case, bits: Bits) -> Tensor:
    """``[T, 2*I]``, gate first."""
    x = torch.cat([rms_norm.rows(case, bits, name, case.number("I")) for name in ("gate", "up")], -1)
    milli = case.number("scale_milli")
    return rms_norm.in_case(case, x if milli == 1000 else x * (milli * 0.866e-3))


def settle(fields: dict[str, Field]) -> dict[str, Field]:
    return narrowed(fields, I=8)


def inputs(case: Case, bits: Bits) -> dict[str, Any]:
    return {"gate_up": gate_up_of(case, bits)}


def cost(case: Case) -> Cost:
    T, I = case.number("T"), case.number("I")
    return Cost(bytes=3 * T * I * rms_norm.element_bytes(case), flops=5 * T * I)


OP = Op(
    name="swiglu",
    outputs={"y": "dtype"},
    factors=FACTORS,
    settle=settle,
    inputs=inputs,
    contract=lambda case: {"silu": None, "out": rms_norm.own_dtype(case)},
    choices={
        "silu": {"dtype": VLLM, "float32": "SGLang:sgl-kernel/csrc/cpu/activation.cpp"},
        "out": {"dtype": VLLM},
    },
    shapes={"decode": {"T": 32, "I": 1536}, "prefill": {"T": 256, "I": 1536}},
    cost=cost,
    budgeted=("gate_up",),
    rows=by_row("gate_up"),
)
